const state = { sort: "", down: false, filter: "", job: -1, hover: -1 };
const BRIGHT = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8b8b8b"];

// The jobs

const jobs = content.jobs, names = jobs.rows.map(row => row[0]);
let listed = [...names.keys()], line = null;

function update() {
  const words = state.filter.toLowerCase().split(/\s+/).filter(Boolean), before = listed.length;
  const column = jobs.columns.indexOf(state.sort);
  const places = column < 0 ? [...names.keys()] : order(jobs, column, state.down);
  listed = places.filter(place => keeps(words, jobs, jobs.rows[place]));
  show($("job-table"), line, listed, column, state.down);
  $("count").textContent = `${listed.length} of ${names.length} jobs`;
  choose(state.job);
  if (before !== listed.length || state.filter !== curvesFilter) draw();
}

function choose(place) {
  if (state.job >= 0) line(state.job).classList.remove("chosen");
  state.job = place;
  if (place >= 0) line(place).classList.add("chosen");
  showJob();
  over();
}

function keep() {  // the state in the address, so that a view can be linked to; restore() reads it
  const words = new URLSearchParams();
  if (state.sort) words.set("sort", (state.down ? "-" : "") + state.sort);
  if (state.filter) words.set("filter", state.filter);
  if (state.job >= 0) words.set("job", names[state.job]);
  history.replaceState(null, "", "#" + words);
}

function restore() {
  const words = new URLSearchParams(location.hash.slice(1)), sort = words.get("sort") || "";
  state.down = sort.startsWith("-");
  state.sort = sort.replace(/^-/, "");
  state.filter = $("filter").value = words.get("filter") || "";
  choose(names.indexOf(words.get("job")));
  update();
}

const quoted = word => /^[\w@%+=:,.\/-]+$/.test(word) ? word : "'" + word.replaceAll("'", "'\"'\"'") + "'";

function showJob() {
  const place = state.job >= 0 ? state.job : 0, row = jobs.rows[place], folder = `${content.folder}/${names[place]}`;
  $("job").hidden = !row;
  if (!row) return;
  $("job-name").textContent = names[place];
  const values = jobs.columns.slice(1, 1 + content.num_keys).map((key, at) => `${key}=${row[at + 1]}`);
  $("job-words").replaceChildren();
  for (const word of values) add($("job-words"), "code", word, "own");
  for (const word of content.fixed) add($("job-words"), "code", word);
  $("job-fault").textContent = content.faults[place] || "";
  $("job-commands").replaceChildren();
  const done = row.at(-1) === "done";
  addCommand($("job-commands"), done ? `dltrain predict run=${quoted(folder)} input=FILE` :
    `dltrain resume run=${quoted(folder)}`);
  addCommand($("job-commands"), `tensorboard --logdir ${quoted(folder)}`);
  if (content.pages[place]) {
    const link = add(add($("job-commands"), "p"), "a", "the page of this job");
    link.href = names[place].split("/").map(encodeURIComponent).join("/") + "/report.html";
  }
  const pictures = $("job-pictures"), figures = content.pictures[place];
  pictures.replaceChildren();
  if (!figures) add(pictures, "p", `Pictures are here for the best ${content.pictures.length} jobs; ` +
    "TensorBoard has those of the others.", "quiet");
  for (const { name, step, address, text } of figures || []) {
    const figure = add(pictures, "figure");
    if (address) {
      const image = add(figure, "img");
      image.src = address;
      image.alt = name;
      image.onload = () => image.classList.toggle("tiny", image.naturalWidth < 160);
    } else add(figure, "pre", text);
    add(figure, "figcaption", `${name}, step ${step}`);
  }
}

// The curves

let visible = [], curvesFilter = null;  // of each curve: job, split, points [x, y, step, value]

function colour(place, count, css) {
  if (count <= BRIGHT.length) return BRIGHT[place];
  const [best, worst] = ["--best", "--worst"].map(name => css.getPropertyValue(name).split(",").map(Number));
  const share = Math.sqrt(place / (count - 1));
  return `rgb(${best.map((value, at) => Math.round(value + (worst[at] - value) * share))})`;
}

function canvas(id) {
  const node = $(id), box = node.getBoundingClientRect(), scale = window.devicePixelRatio || 1;
  node.width = box.width * scale;
  node.height = box.height * scale;
  const context = node.getContext("2d");
  context.scale(scale, scale);
  return [context, box.width, box.height];
}

function draw() {
  const ofMetric = content.curves[$("metric").value];
  if (!ofMetric) return;
  const css = getComputedStyle(document.documentElement), isLog = $("log").checked;
  const splits = $("training").checked ? ["train", "val"] : ["val"];
  const chosen = [...listed].sort((a, b) => b - a);  // the best on top
  const curves = splits.flatMap(split => chosen.flatMap(job => {
    const curve = ofMetric[split][job];
    if (!curve) return [];
    const steps = content.steps[curve[0]];
    const points = curve[1].map((value, at) => [0, 0, steps[at], value]);
    return [{ job, split, points: isLog ? points.map(point => point[3] > 0 ? point : [0, 0, point[2], null]) : points }];
  }));
  const [context, width, height] = canvas("lines");
  [visible, curvesFilter] = [curves, state.filter];
  let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
  for (const { points } of curves) for (const [, , step, value] of points) if (value !== null) {
    left = Math.min(left, step), right = Math.max(right, step), low = Math.min(low, value), high = Math.max(high, value);
  }
  context.font = "12px system-ui, sans-serif";
  context.fillStyle = css.getPropertyValue("--quiet");
  $("legend").textContent = curves.length === 0 || low === Infinity ? "no curves of these jobs" :
    `${$("metric").value} by step; ` + (names.length <= BRIGHT.length ? "a colour per job" :
    "coloured by rank in validation, the best strongest") + `; at most ${content.most_points} readings of a curve are drawn, with its peaks`;
  if (low === Infinity) return;
  if (low === high) [low, high] = isLog ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  if (left === right) right = left + 1;
  const y = isLog ? Math.log10 : value => value, [bottom, top] = [y(low), y(high)];
  const box = { left: 52, right: width - 22, top: 8, bottom: height - 24 };
  const atX = step => box.left + (step - left) / (right - left) * (box.right - box.left);
  const atY = value => box.bottom - (y(value) - bottom) / (top - bottom) * (box.bottom - box.top);
  context.strokeStyle = css.getPropertyValue("--line");
  context.lineWidth = 1;
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of ticks(low, high, isLog)) {
    context.strokeRect(box.left, atY(value), box.right - box.left, 0);
    context.fillText(short(value), box.left - 6, atY(value));
  }
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const step of ticks(left, right, false)) context.fillText(step.toLocaleString("en"), atX(step), box.bottom + 6);
  for (const curve of curves) for (const point of curve.points) {
    point[0] = atX(point[2]);
    point[1] = point[3] === null ? NaN : atY(point[3]);
  }
  const alpha = Math.max(0.25, Math.min(1, 60 / curves.length));
  for (const curve of curves) stroke(context, curve, colour(curve.job, names.length, css), 1.3, alpha);
  over();
}

function stroke(context, { points, split }, paint, thickness, alpha) {
  context.beginPath();
  let open = false;
  for (const [x, y] of points) {
    if (isNaN(y)) open = false;
    else if (open) context.lineTo(x, y);
    else context.moveTo(x, y), open = true;
  }
  context.globalAlpha = split === "train" ? alpha * 0.6 : alpha;
  context.setLineDash(split === "train" ? [4, 3] : []);
  context.strokeStyle = paint;
  context.lineWidth = thickness;
  context.stroke();
  context.setLineDash([]);
  context.fillStyle = paint;
  if (points.length === 1 && !isNaN(points[0][1])) context.fillRect(points[0][0] - 2.5, points[0][1] - 2.5, 5, 5);
  context.globalAlpha = 1;
}

function over(near) {  // the chosen job and the one below the pointer, above the others
  const [context] = canvas("over"), css = getComputedStyle(document.documentElement);
  for (const curve of visible) if (curve.job === state.job || (near && curve.job === near.job))
    stroke(context, curve, css.getPropertyValue("--text"), 2.2, 1);
  $("tip").style.display = near ? "block" : "none";
  if (!near) return;
  const [x, y, step, value] = near.point, width = context.canvas.clientWidth;
  context.fillStyle = css.getPropertyValue("--text");
  context.beginPath();
  context.arc(x, y, 4, 0, 7);
  context.fill();
  $("tip").textContent = `${names[near.job]}: ${near.split}/${$("metric").value} ${value} at step ${step.toLocaleString("en")}`;
  $("tip").style.left = x < width / 2 ? `${x + 12}px` : "auto";
  $("tip").style.right = x < width / 2 ? "auto" : `${width - x + 12}px`;
  $("tip").style.top = `${Math.max(0, y - 30)}px`;
}

function nearest(event) {
  const box = $("over").getBoundingClientRect(), [left, top] = [event.clientX - box.left, event.clientY - box.top];
  let best = null, least = 40 ** 2;
  for (const { job, split, points } of visible) for (const point of points) {
    const distance = (point[0] - left) ** 2 + (point[1] - top) ** 2;
    if (distance < least) least = distance, best = { job, split, point };
  }
  return best;
}

// The page

content.summary.forEach(text => add($("summary"), "p", text));
if (names.length) {
  line = fill($("job-table"), jobs, column => {
    const name = jobs.columns[column];
    state.down = state.sort === name ? !state.down : numeric(jobs, column) && /\//.test(name) && content.mode === "max";
    state.sort = name;
    update();
    keep();
  }, (cell, text, place) => {
    const link = add(cell, "a", text);
    link.href = "#job=" + encodeURIComponent(text);
    link.onclick = event => {
      event.preventDefault();
      choose(place);
      keep();
      $("job").scrollIntoView({ block: "nearest" });
    };
  });
  $("jobs").hidden = false;
}
if (content.settings.rows.length) {
  sortable($("setting-table"), content.settings);
  $("settings").hidden = false;
}
$("training").checked = names.length <= 300;  // thousands of dashed lines take a browser seconds
Object.keys(content.curves).forEach(name => add($("metric"), "option", name));
$("curves").hidden = !Object.keys(content.curves).length;
$("picture").hidden = !content.picture;
if (content.picture) $("picture").querySelector("img").src = content.picture;
writeCommands();
let timer = 0;
$("filter").oninput = event => {
  clearTimeout(timer);
  timer = setTimeout(() => { state.filter = event.target.value; update(); keep(); }, 120);
};
for (const id of ["metric", "training", "log"]) $(id).onchange = draw;
$("over").onpointermove = event => over(nearest(event));
$("over").onpointerleave = () => over();
$("over").onclick = event => {
  const near = nearest(event);
  if (near) choose(near.job), keep();
};
window.onhashchange = restore;
new ResizeObserver(draw).observe($("lines").parentElement);
matchMedia("(prefers-color-scheme: dark)").onchange = draw;
if (names.length) restore();
