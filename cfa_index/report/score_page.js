
"use strict";
const page = JSON.parse(document.getElementById("scores").textContent);
const byId = (id) => document.getElementById(id);
const [LEFT, RIGHT, TOP, BOTTOM] = [48, 12, 22, 24]; // px around the bars; score_page.css knows the first two

// Names are other people's: they become text, never markup.
const element = (tag, text = "", attributes = {}) => {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};
const drawn = (tag, attributes, text = "") => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};
const whole = (count) => count.toLocaleString("en");
const figure = (value) => {
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e4) ? value.toExponential(3) : value.toPrecision(4);
};
const short = (value) => String(Number(value.toPrecision(4)));
const share = (part, all) => all === 0 ? "" : (100 * part / all).toFixed(2) + "%";

// ---- counts: exact at any threshold where all scores are here, at the edges of bins where they are counted

function unpacked(text, Kind) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < letters.length; at += 1) bytes[at] = letters.charCodeAt(at);
  return new Kind(bytes.buffer);
}

function firstAbove(values, limit) {
  let [low, high] = [0, values.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] > limit) high = middle; else low = middle + 1;
  }
  return low;
}

const edges = page.edges === null ? null : unpacked(page.edges, Float64Array);
const values = unpacked(page.values, edges === null ? Float32Array : Uint32Array);
let start = 0;
for (const folder of page.folders) {
  folder.own = values.subarray(start, start += folder.values);
  if (edges !== null) { // to how many scores lie in a bin or above it
    folder.above = new Float64Array(edges.length);
    for (let at = folder.own.length - 1; at >= 0; at -= 1) folder.above[at] = folder.above[at + 1] + folder.own[at];
  }
  folder.scored = edges === null ? folder.own.length : folder.above[0];
}

// The edge nearest to a threshold; the threshold itself where every score is known.
function settled(limit) {
  if (edges === null || limit < edges[0] || limit >= edges[edges.length - 1]) return limit;
  const next = firstAbove(edges, limit);
  return limit - edges[next - 1] <= edges[next] - limit ? edges[next - 1] : edges[next];
}

function countAbove(folder, limit) {
  if (edges === null) return folder.own.length - firstAbove(folder.own, limit);
  return folder.above[Math.max(0, firstAbove(edges, settled(limit)) - 1)];
}

const total = (folders, of) => folders.reduce((sum, folder) => sum + of(folder), 0);
const above = (limit) => total(chosenFolders(), (folder) => countAbove(folder, limit));

// ---- what is chosen

const holding = page.folders.filter((folder) => folder.scored > 0);
const lowest = edges !== null ? edges[0] : Math.min(...holding.map((folder) => folder.own[0]));
const highest = edges !== null ? edges[edges.length - 1] : Math.max(...holding.map((folder) => folder.own.at(-1)));
const known = holding.length > 0;
const low = known ? Math.min(lowest, page.threshold ?? lowest) : 0;
const high = known ? Math.max(highest, page.threshold ?? highest, low + 1e-9) : 1;
let limit = page.threshold;
let folderChosen = null;
let shown = [];

const chosenFolders = () => folderChosen === null ? page.folders : [page.folders[folderChosen]];
const isChosen = (row) => folderChosen === null || row.folder === folderChosen;
const verdict = (score) => limit === null ? "" : score > limit ? "anomalous" : "good";
const mark = (made, score) => {
  const word = verdict(score);
  made.className = "mark " + word;
  made.textContent = word === "anomalous" ? "▲ anomalous" : word === "good" ? "● good" : "";
};

// ---- drawing

function tiles() {
  const folders = chosenFolders();
  const scored = total(folders, (folder) => folder.scored);
  const rejected = total(folders, (folder) => folder.rejected.reduce((sum, count) => sum + count, 0));
  const anomalous = limit === null ? null : above(limit);
  const rows = [
    ["images", "images", scored + rejected, ""],
    ["anomalous", "anomalous", anomalous, anomalous === null ? "no threshold" : share(anomalous, scored)],
    ["good", "good", anomalous === null ? null : scored - anomalous,
      anomalous === null ? "" : share(scored - anomalous, scored)],
    ["rejected", "without a score", rejected, share(rejected, scored + rejected)],
  ];
  byId("tiles").replaceChildren(...rows.map(([name, label, count, more]) => {
    const tile = element("div", "", { class: "tile " + name });
    tile.append(element("span", label), element("b", count === null ? "–" : whole(count)), element("small", more));
    return tile;
  }));
}

function steps(from, to, most) {
  const rough = (to - from) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((times) => times * power >= rough) * power;
  const found = [];
  for (let at = Math.ceil(from / step); at * step <= to; at += 1) found.push(at * step);
  return found;
}

function histogram() {
  const width = Math.max(byId("plot").clientWidth, 200);
  const height = byId("plot").clientHeight;
  const [inner, tall] = [width - LEFT - RIGHT, height - TOP - BOTTOM];
  const scored = total(chosenFolders(), (folder) => folder.scored);
  const count = Math.max(20, Math.min(120, Math.floor(inner / 9), Math.floor(4 * Math.sqrt(scored))));
  const atBar = (bar) => low + bar * (high - low) / count;
  const x = (score) => LEFT + inner * (score - low) / (high - low);
  // Bars are open below, as a threshold is; the first holds the lowest score too.
  const over = Array.from({ length: count + 1 }, (_, bar) => above(bar === 0 ? -Infinity : bar === count ? Infinity : atBar(bar)));
  const most = Math.max(1, ...over.slice(1).map((after, bar) => over[bar] - after));
  const isLog = byId("log").checked;
  const scale = (n) => isLog ? Math.log1p(n) / Math.log1p(most) : n / most;
  const y = (n) => TOP + tall * (1 - scale(n));
  const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  const ticks = isLog ? [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8].filter((n) => n <= most)
    : steps(0, most, 4).filter(Number.isInteger);
  for (const n of ticks) {
    svg.append(drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(n), y2: y(n) }));
    svg.append(drawn("text", { x: LEFT - 6, y: y(n) + 4, "text-anchor": "end" },
      n < 1e4 ? whole(n) : n.toLocaleString("en", { notation: "compact" })));
  }
  for (let bar = 0; bar < count; bar += 1) {
    const held = over[bar] - over[bar + 1];
    if (held === 0) continue;
    const [from, to] = [atBar(bar), atBar(bar + 1)];
    const beyond = limit === null || limit >= to ? 0 : limit < from ? held : Math.max(0, Math.min(held, above(limit) - over[bar + 1]));
    const [left, wide] = [x(from) + 0.5, inner / count - 1];
    // Heights are those of counts; of a bar on both sides of the threshold each part has its share.
    const part = (beyond / held) * (y(0) - y(held));
    if (beyond < held) svg.append(drawn("rect", { class: "below", x: left, width: wide, y: y(held) + part, height: y(0) - y(held) - part }));
    if (beyond > 0) svg.append(drawn("rect", { class: "above", x: left, width: wide, y: y(held), height: part }));
  }
  svg.append(drawn("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(0), y2: y(0) }));
  for (const score of steps(low, high, Math.max(3, inner / 110))) {
    svg.append(drawn("text", { x: x(score), y: height - 6, "text-anchor": "middle" }, short(score)));
  }
  if (page.threshold !== null && page.threshold !== limit) {
    svg.append(drawn("line", { class: "run", x1: x(page.threshold), x2: x(page.threshold), y1: TOP - 4, y2: y(0) }));
  }
  if (limit !== null && limit >= low && limit <= high) {
    const at = x(limit);
    svg.append(drawn("line", { class: "limit", x1: at, x2: at, y1: TOP - 6, y2: y(0) }));
    svg.append(drawn("text", { class: "limit-text", x: Math.min(Math.max(at, LEFT + 50), width - 62), y: TOP - 9, "text-anchor": "middle" },
      "threshold " + short(limit)));
  }
  svg.setAttribute("aria-label", limit === null ? "Histogram of the scores"
    : `Histogram of the scores: ${above(limit)} above the threshold ${figure(limit)}`);
  byId("plot").replaceChildren(svg);
}

// ---- the gallery

const cards = page.top.map((row, place) => {
  const card = element("li");
  const button = element("button", "", { type: "button" });
  const text = element("span", "", { class: "text" });
  const line = element("span", "", { class: "score" });
  const badge = element("span");
  line.append(element("span", figure(row.score)), badge);
  text.append(line, element("span", row.uri, { class: "uri" }));
  if (row.thumbnail) {
    const picture = element("img", "", { alt: "anomaly map over " + row.uri, loading: "lazy", decoding: "async", width: 190, height: 190 });
    picture.addEventListener("error", () => picture.replaceWith(element("span", "picture is gone", { class: "none" })));
    picture.src = row.thumbnail;
    button.append(picture);
  } else button.append(element("span", "no picture", { class: "none" }));
  button.append(text);
  button.disabled = !row.panel;
  button.addEventListener("click", () => view(place));
  card.append(button);
  return { row, card, button, badge };
});
byId("gallery").append(...cards.map((one) => one.card));

function gallery() {
  const wanted = byId("show").querySelector("[aria-pressed=true]").value;
  for (const { row, card, badge } of cards) {
    mark(badge, row.score);
    card.hidden = !isChosen(row) || (wanted !== "all" && verdict(row.score) !== wanted);
  }
  const seen = cards.filter((one) => !one.card.hidden).length;
  shown = cards.map((one, place) => place).filter((place) => !cards[place].card.hidden && cards[place].row.panel);
  byId("gallery-count").textContent = `${whole(seen)} of the ${whole(cards.length)} highest scores`;
  byId("gallery-empty").hidden = seen > 0;
  byId("gallery-empty").textContent = cards.length === 0 ? "No image has a score."
    : `None of the ${whole(cards.length)} highest scores is among these; the others are in scores.csv.`;
}

// ---- one image, large

let viewed = 0;

function view(place) {
  viewed = place;
  const { row } = cards[place];
  mark(byId("viewer-mark"), row.score);
  byId("viewer-name").textContent = row.uri;
  byId("panel").alt = `${row.uri}: the image, its anomaly map, its worst patches and the normal patches that they matched`;
  byId("panel").src = row.panel;
  const at = shown.indexOf(place);
  byId("viewer-facts").textContent = `score ${figure(row.score)}`
    + (limit === null ? "" : `, threshold ${figure(limit)}`) + ` · ${at + 1} of ${shown.length} · arrow keys step, Esc closes`;
  byId("previous").disabled = at <= 0;
  byId("next").disabled = at === shown.length - 1;
  if (!byId("viewer").open) byId("viewer").showModal();
}

function step(by) {
  const place = shown[shown.indexOf(viewed) + by];
  if (place !== undefined) view(place);
}

byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => byId("viewer").close());
byId("viewer").addEventListener("click", (event) => { if (event.target === byId("viewer")) byId("viewer").close(); });
byId("viewer").addEventListener("close", () => cards[viewed].button.focus());
byId("viewer").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
    event.preventDefault();
    step(event.key === "ArrowLeft" ? -1 : 1);
  }
});

// ---- images without a score, and the lowest scores

function rejected() {
  const chosen = byId("reason").value;
  const counted = (reason) => total(chosenFolders(), (folder) => folder.rejected[reason]);
  for (const option of byId("reason").options) {
    const all = option.value === "";
    const count = all ? page.reasons.reduce((sum, _, reason) => sum + counted(reason), 0) : counted(Number(option.value));
    option.textContent = (all ? "all" : page.reasons[Number(option.value)]) + ` (${whole(count)})`;
  }
  const rows = page.rejected.filter((row) => isChosen(row) && (chosen === "" || row.reason === Number(chosen)));
  const all = page.reasons.reduce((sum, _, reason) => chosen === "" || reason === Number(chosen) ? sum + counted(reason) : sum, 0);
  byId("rejected-count").textContent = rows.length === all ? whole(all)
    : `${whole(rows.length)} of ${whole(all)} shown; all are in scores.csv`;
  byId("rejected").tBodies[0].replaceChildren(...rows.map((row) => line(row.uri, row.error)));
}

function line(name, more, kind = "why") {
  const made = element("tr");
  made.append(element("td", name), element("td", more, { class: kind }));
  return made;
}

function bottom() {
  const rows = page.bottom.filter(isChosen);
  byId("bottom-section").hidden = rows.length === 0;
  byId("bottom").tBodies[0].replaceChildren(...rows.map((row) => line(row.uri, figure(row.score), "figure")));
}

// ---- controls

function showLimit() {
  byId("threshold").value = limit === null ? "" : Number(limit.toPrecision(7));
}

function setLimit(value, from) {
  limit = value === null ? null : settled(value);
  if (from !== "slider") byId("slider").value = limit === null ? 1000 : Math.round(1000 * (limit - low) / (high - low));
  if (from !== "field") showLimit();
  byId("reset").disabled = limit === page.threshold;
  byId("note").textContent = limit === page.threshold
    ? (limit === null ? "The run had no threshold: choose one." : "")
    : `to keep it: cfa-index score --threshold ${limit}` + (page.threshold === null ? "" : ` (the run's: ${figure(page.threshold)})`);
  tiles();
  histogram();
  gallery();
}

// To four digits: a threshold is read aloud and typed again.
const alongTheScores = (part) => Number((low + Math.min(Math.max(part, 0), 1) * (high - low)).toPrecision(4));

function setFolder(value) {
  folderChosen = value === "" ? null : Number(value);
  tiles();
  histogram();
  gallery();
  rejected();
  bottom();
}

byId("slider").addEventListener("input", () => setLimit(alongTheScores(byId("slider").value / 1000), "slider"));
byId("threshold").addEventListener("input", () => {
  const value = byId("threshold").valueAsNumber;
  if (Number.isFinite(value)) setLimit(value, "field");
});
byId("threshold").addEventListener("change", showLimit);
byId("reset").addEventListener("click", () => setLimit(page.threshold));
byId("log").addEventListener("change", histogram);
byId("folder").addEventListener("change", () => setFolder(byId("folder").value));
byId("reason").addEventListener("change", rejected);
byId("plot").addEventListener("pointerdown", (event) => { byId("plot").setPointerCapture(event.pointerId); drag(event); });
byId("plot").addEventListener("pointermove", (event) => { if (event.buttons & 1) drag(event); });
function drag(event) {
  const box = byId("plot").getBoundingClientRect();
  if (known) setLimit(alongTheScores((event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT)));
}
for (const button of byId("show").children) {
  button.addEventListener("click", () => {
    for (const other of byId("show").children) other.setAttribute("aria-pressed", String(other === button));
    gallery();
  });
}

// ---- the page

byId("facts").append(...page.facts.map(([label, value]) => {
  const fact = element("span", label + " ");
  fact.append(element("b", value, { class: "uri" }));
  return fact;
}));
byId("links").append(...page.links.map(([href, label]) => element("a", label, { href })));
byId("credit").textContent = page.credit;
byId("folder").append(element("option", "all", { value: "" }), ...page.folders.map((folder, place) =>
  element("option", `${folder.name} (${whole(folder.scored + folder.rejected.reduce((sum, count) => sum + count, 0))})`, { value: place })));
byId("folder").parentElement.hidden = page.folders.length < 2;
byId("reason").append(element("option", "", { value: "" }), ...page.reasons.map((_, reason) => element("option", "", { value: reason })));
byId("rejected-section").hidden = page.reasons.length === 0;
byId("slider").disabled = byId("threshold").disabled = !known;
byId("log").checked = total(page.folders, (folder) => folder.scored) > 1000;
if (edges !== null) {
  byId("rounded").hidden = false;
  byId("rounded").textContent = `Of so many scores ${whole(edges.length - 1)} bins are kept here: a threshold moves to the nearest`
    + " edge of a bin, where the counts are exact. All scores are in scores.csv.";
}
setFolder("");
setLimit(page.threshold);
new ResizeObserver(histogram).observe(byId("plot"));
