"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const $ = id => document.getElementById(id);

function add(parent, tag, text, kind) {  // text is never markup
  const node = parent.appendChild(document.createElement(tag));
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  return node;
}

const number = text => text.trim() === "" ? NaN : Number(text);
const numeric = ({ rows }, column) => rows.some(row => row[column] !== "") &&
  rows.every(row => row[column] === "" || !isNaN(number(row[column])));

// Tables

function order(table, column, down) {  // of the rows, by a column; blanks stay last
  const keys = table.rows.map(row => row[column]), places = [...keys.keys()];
  const blank = place => keys[place] === "";
  const isNumber = numeric(table, column), values = keys.map(number);
  const collator = new Intl.Collator("en", { numeric: true });
  const compare = isNumber ? (a, b) => values[a] - values[b] : (a, b) => collator.compare(keys[a], keys[b]);
  return places.sort((a, b) => blank(a) - blank(b) || (down ? -1 : 1) * (compare(a, b) || 0) || a - b);
}

function fill(node, table, onSort, nameCell) {  // returns what makes the element of a row, once, when it is listed
  const head = add(add(node, "thead"), "tr"), made = [];
  const right = table.columns.map((_, column) => numeric(table, column));
  table.columns.forEach((name, column) => {
    const cell = add(head, "th", undefined, right[column] ? "number" : "");
    add(cell, "button", name).onclick = () => onSort(column);
  });
  add(node, "tbody");
  return place => {
    if (made[place]) return made[place];
    const line = made[place] = document.createElement("tr");
    table.rows[place].forEach((text, column) => {
      if (column === 0 && nameCell) nameCell(add(line, "td"), text, place);
      else add(line, "td", text, right[column] ? "number" : text.length > 30 ? "long" : "");
    });
    return line;
  };
}

const BATCH = 100;  // rows: those further down are added when they are scrolled to

function show(node, line, places, column, down) {
  node.querySelectorAll("th").forEach((cell, at) => {
    if (at === column) cell.ariaSort = down ? "descending" : "ascending";
    else cell.removeAttribute("aria-sort");
  });
  const body = node.tBodies[0], frame = node.parentElement;
  body.replaceChildren(...places.slice(0, BATCH).map(line));
  frame.scrollTop = 0;
  frame.onscroll = () => {
    if (frame.scrollTop + 2 * frame.clientHeight > frame.scrollHeight)
      body.append(...places.slice(body.rows.length, body.rows.length + BATCH).map(line));
  };
}

function keeps(words, table, row) {  // whether a row has all words of a filter
  const text = row.join("\n").toLowerCase();
  return words.every(word => {
    const [, name, sign, wanted] = /^([^<>=]+)(<=|>=|=|<|>)(.+)$/.exec(word) || [];
    const column = name ? table.columns.findIndex(key => key.toLowerCase() === name || key.toLowerCase().endsWith("." +
      name) || key.toLowerCase().endsWith("/" + name)) : -1;
    if (column < 0) return text.includes(word);
    const value = row[column].toLowerCase(), gap = number(value) - number(wanted);
    return sign === "=" ? value === wanted || gap === 0 : sign === "<" ? gap < 0 : sign === ">" ? gap > 0 :
      sign === "<=" ? gap <= 0 : gap >= 0;
  });
}

function sortable(node, table) {  // a table that a click on a column sorts, and nothing else changes
  let [last, down] = [-1, false];
  const line = fill(node, table, column => {
    down = last === column ? !down : false;
    last = column;
    show(node, line, order(table, column, down), column, down);
  });
  show(node, line, [...table.rows.keys()], -1, false);
}

// Commands

function addCommand(parent, command) {  // with a button that copies it
  const frame = add(parent, "div", undefined, "command"), text = add(frame, "pre", command);
  const button = add(frame, "button", "copy");
  button.onclick = async () => {
    try {
      await navigator.clipboard.writeText(command);
    } catch {  // not allowed here: the older way
      getSelection().selectAllChildren(text);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  };
}

function writeCommands() {
  const frame = add($("commands"), "div", undefined, "commands");
  for (const [purpose, command] of content.commands) {
    const item = add(frame, "div");
    add(item, "div", purpose, "quiet");
    addCommand(item, command);
    $("commands").hidden = false;
  }
}

// Axes

function ticks(low, high, isLog) {
  if (isLog && Math.log10(high / low) >= 1) {
    const powers = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const step of Math.log10(high / low) < 3 ? [1, 2, 5] : [1]) powers.push(step * 10 ** power);
    return powers.filter(value => value >= low && value <= high);
  }
  const raw = (high - low) / 5 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= raw), all = [];
  for (let at = Math.ceil(low / step); at * step <= high + step / 1e6; at++) all.push(at * step);
  return all;
}

const short = value => Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(1) :
  String(Number(value.toPrecision(4)));

