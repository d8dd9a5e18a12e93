// The head

const WIDE = ["how it ended", "how far it is", "parent", "folder", "command"];  // on a line of their own
const [stateWord, stateKind] = content.state;
$("state").textContent = stateWord;
$("state").className = stateKind;
$("name").lastElementChild.textContent = content.name;
document.title = `${content.pair}, ${content.name}`;
for (const [value, name] of content.tiles) {
  const tile = add($("tiles"), "div");
  add(tile, "b", value);
  add(tile, "span", name);
}
for (const pair of content.head)
  list(add($("head"), "div", undefined, WIDE.includes(pair[0]) ? "wide" : ""), [pair]);
for (const text of content.warnings) add($("warnings").querySelector("ul"), "li", text);
$("warnings").hidden = !content.warnings.length;
const [message, ...trace] = content.error.split("\n");
$("error").querySelector("p").textContent = message;
$("error").querySelector("pre").textContent = trace.join("\n").trim();
$("error").querySelector("details").hidden = !trace.length;
$("error").hidden = !content.error;
for (const [id, least] of [["data", 1], ["environment", 1], ["starts", 2]]) {
  list($(id).querySelector("dl"), content[id]);
  $(id).hidden = content[id].length < least;
}
writeCommands();

function list(node, pairs) {
  for (const [name, value] of pairs) {
    add(node, "dt", name);
    add(node, "dd", value);
  }
}

// The curves

const HEIGHT = 230, LEFT = 50, RIGHT = 14, TOP = 8, BOTTOM = 22;  // px
let charts = [], drawnWidth = 0;

function svg(parent, tag, attributes, text) {
  const node = parent.appendChild(document.createElementNS("http://www.w3.org/2000/svg", tag));
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

function epochOf(step) {  // between the ends of epochs in proportion to the steps, beyond the last one likewise
  const ends = [[0, 0], ...content.ends];
  let at = ends.findIndex(([end]) => end >= step);
  if (at < 1) at = step <= 0 ? 1 : ends.length - 1;
  const [[left, first], [right, last]] = [ends[at - 1], ends[at]];
  return first + (step - left) / (right - left || 1) * (last - first);
}

function axisTexts(values) {  // as few digits as tell them apart
  const most = Math.max(...values.map(Math.abs)), gap = Math.min(...values.slice(1).map((value, at) => value - values[at]));
  const digits = Math.max(0, Math.min(8, -Math.floor(Math.log10(gap) + 1e-9)));
  return values.map(value => value === 0 ? "0" : most >= 1e5 ? value.toLocaleString("en", { notation: "compact" }) :
    most < 1e-3 || values.length < 2 || !(gap > 0) ? short(value) :
      value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
}

const across = step => $("axis").value === "epoch" ? epochOf(step) : step;

function drawCharts() {
  const width = drawnWidth = $("charts").firstElementChild.clientWidth;
  const steps = content.charts.flatMap(chart => chart.lines.flatMap(line => line[1]));
  const last = Math.max(...steps), from = Math.min(...steps, content.ends.length ? 0 : Infinity);
  charts = content.charts.map((chart, at) => drawChart(chart, $("charts").children[at], width, [from, last]));
}

function drawChart({ name, is_loss, lines }, frame, width, [from, last]) {
  frame.querySelector("svg")?.remove();
  const isLog = is_loss && $("log").checked;
  const values = lines.flatMap(line => line[2]).filter(value => value !== null && (!isLog || value > 0));
  const node = svg(frame, "svg", { width, height: HEIGHT, role: "img", "aria-label": name });
  if (!values.length) return { node, points: [] };
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const size = Math.max(Math.abs(low), Math.abs(high));
  if (isLog && low === high) [low, high] = [low / 2, high * 2];
  if (!isLog && high - low < size / 50) [low, high] = [low - size / 50, high + size / 50];  // a constant, but for noise
  if (low === high) [low, high] = [-0.5, 0.5];
  const y = isLog ? Math.log10 : value => value, gap = (y(high) - y(low)) * 0.04;
  const [bottom, top] = [y(low) - gap, y(high) + gap], [left, right] = [across(from), across(last)];
  const atX = step => LEFT + (across(step) - left) / (right - left || 1) * (width - LEFT - RIGHT);
  const atY = value => HEIGHT - BOTTOM - (y(value) - bottom) / (top - bottom) * (HEIGHT - BOTTOM - TOP);
  const heights = ticks(low, high, isLog), isPowers = isLog && Math.log10(high / low) >= 1;
  const texts = isPowers ? heights.map(short) : axisTexts(heights);
  heights.forEach((value, at) => {
    svg(node, "line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: atY(value), y2: atY(value) });
    svg(node, "text", { x: LEFT - 6, y: atY(value) + 4, "text-anchor": "end" }, texts[at]);
  });
  const scale = (width - LEFT - RIGHT) / (right - left || 1);
  for (const value of ticks(left, right, false).filter(value => Number.isInteger(value)))
    svg(node, "text", { x: LEFT + (value - left) * scale, y: HEIGHT - 5, "text-anchor": "middle" }, value.toLocaleString("en"));
  const points = lines.flatMap(([split, steps, ofLine]) => {
    const listed = steps.map((step, at) => ({ split, step, value: ofLine[at], x: atX(step),
      y: ofLine[at] === null || (isLog && ofLine[at] <= 0) ? NaN : atY(ofLine[at]) }));
    let path = "", open = false;
    for (const point of listed) {
      if (!isNaN(point.y)) path += `${open ? "L" : "M"}${point.x.toFixed(1)} ${point.y.toFixed(1)}`;
      open = !isNaN(point.y);
    }
    svg(node, "path", { class: `line ${split || "only"}`, d: path });
    if (listed.length <= 60) for (const point of listed) if (!isNaN(point.y))
      svg(node, "circle", { class: split || "only", cx: point.x, cy: point.y, r: listed.length === 1 ? 4 : 2 });
    return listed;
  });
  if (content.best) {
    const x = atX(content.best[0]);
    svg(node, "line", { class: "best", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM });
    const best = points.find(point => point.step === content.best[0] && point.split === "val");
    if (best && name === content.headline && !isNaN(best.y)) svg(node, "circle", { class: "best", cx: best.x, cy: best.y, r: 5 });
  }
  const chart = { node, points, width, marks: svg(node, "g", { class: "marks" }) };
  node.onpointermove = event => point(chart, frame, event);
  node.onpointerleave = () => charts.forEach(other => mark(other, null)) || ($("tip").style.display = "none");
  return chart;
}

function near(points, step) {  // of each split the reading whose step is the nearest
  const found = {};
  for (const reading of points) if (!isNaN(reading.y)) {
    const other = found[reading.split];
    if (!other || Math.abs(reading.step - step) < Math.abs(other.step - step)) found[reading.split] = reading;
  }
  return Object.values(found);
}

function mark(chart, step) {  // the readings of a step, in each chart
  if (!chart.marks) return;
  chart.marks.replaceChildren();
  if (step === null) return;
  const readings = near(chart.points, step);
  for (const { x } of readings.slice(-1)) svg(chart.marks, "line", { x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM });
  for (const { split, x, y } of readings) svg(chart.marks, "circle", { class: split || "only", cx: x, cy: y, r: 4 });
}

function point(chart, frame, event) {
  const left = event.clientX - chart.node.getBoundingClientRect().left;
  const least = chart.points.filter(reading => !isNaN(reading.y)).reduce((best, reading) =>
    Math.abs(reading.x - left) < Math.abs(best.x - left) ? reading : best, { x: Infinity });
  if (least.step === undefined) return;
  charts.forEach(other => mark(other, least.step));
  const tip = $("tip"), readings = near(chart.points, least.step);
  tip.replaceChildren();
  const place = content.ends.length ? `, epoch ${Number(epochOf(least.step).toFixed(2))}` : "";
  add(tip, "div", `step ${least.step.toLocaleString("en")}${place}`, "quiet");
  for (const { split, step, value } of readings)
    add(tip, "div", [split, String(value), step === least.step ? "" : `at step ${step.toLocaleString("en")}`].join(" ").trim(), split || "only");
  frame.append(tip);
  tip.style.display = "block";
  tip.style.left = least.x < chart.width / 2 ? `${least.x + 12}px` : "auto";
  tip.style.right = least.x < chart.width / 2 ? "auto" : `${chart.width - least.x + 12}px`;
}

if (content.charts.length) {
  $("curves").hidden = false;
  for (const { name } of content.charts) add(add($("charts"), "div", undefined, "panel"), "h3", name);
  const tip = add($("curves"), "div");
  tip.id = "tip";
  for (const split of ["train", "val"]) if (content.charts.some(chart => chart.lines.some(line => line[0] === split)))
    add($("legend"), "span", split, split);
  if (content.best) add($("legend"), "span", `best epoch, ${content.best[1]}`, "best");
  $("log-choice").hidden = !content.charts.some(chart => chart.is_loss);
  if (!content.ends.length) $("axis").value = "step", $("axis").disabled = true;
  $("curve-note").textContent = `At most ${content.most_points} readings of a curve are drawn, with its peaks.` +
    (content.charts_left_out ? ` ${content.charts_left_out} more metrics are in metrics.csv.` : "");
  for (const id of ["axis", "log"]) $(id).onchange = drawCharts;
  drawCharts();
  new ResizeObserver(() => $("charts").firstElementChild.clientWidth !== drawnWidth && drawCharts()).observe($("charts"));
}

// Pictures and texts

for (const { name, versions } of content.pictures) {
  const figure = add($("picture-list"), "figure"), newest = versions.at(-1);
  const body = newest.address ? add(figure, "img") : add(figure, "pre");
  const caption = add(figure, "figcaption", name + ", ");
  const buttons = versions.map((version, at) => {
    const words = `step ${version.step.toLocaleString("en")}` + (versions.length < 2 ? "" : at ? ", newest" : ", first");
    if (versions.length < 2) return add(caption, "span", words);
    const button = add(caption, "button", words);
    button.onclick = () => choose(version, button);
    return button;
  });
  const choose = (version, button) => {
    if (version.address) {
      body.src = version.address;
      body.alt = `${name}, step ${version.step}`;
      [body.width, body.height] = version.size;
      body.classList.toggle("tiny", version.size[0] < 160);
    } else body.textContent = version.text;
    for (const other of buttons) other.setAttribute("aria-pressed", other === button);
  };
  choose(newest, buttons.at(-1));
  if (newest.address) body.onclick = () => {
    $("whole").firstElementChild.src = body.src;
    $("whole").showModal();
  };
}
$("whole").onclick = () => $("whole").close();
$("left-out").textContent = content.left_out.length ? `Left out: ${content.left_out.join("; ")}.` : "";
$("pictures").hidden = !content.pictures.length && !content.left_out.length;

// Tables

if (content.classes.rows.length) {
  sortable($("class-table"), content.classes);
  $("classes").hidden = false;
}
const keys = content.config;
const isGiven = row => ["command line", "sweep"].includes(row[2]);
let [sorted, falls] = [-1, false];
const keyLine = fill($("config-table"), keys, column => {
  falls = sorted === column ? !falls : false;
  sorted = column;
  updateConfig();
});

function updateConfig() {
  const typed = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const rank = place => isGiven(keys.rows[place]) ? 0 : keys.rows[place][2] === "default" ? 2 : 1;
  const places = sorted < 0 ? [...keys.rows.keys()].sort((a, b) => rank(a) - rank(b) || a - b) :
    order(keys, sorted, falls);
  const kept = places.filter(place => keeps(typed, keys, keys.rows[place]) &&
    !($("changed").checked && keys.rows[place][2] === "default"));
  show($("config-table"), place => {
    const line = keyLine(place);
    line.classList.toggle("given", isGiven(keys.rows[place]));
    return line;
  }, kept, sorted, falls);
  $("count").textContent = `${kept.length} of ${keys.rows.length} keys`;
}
$("filter").oninput = $("changed").onchange = updateConfig;
updateConfig();
$("config").hidden = false;
