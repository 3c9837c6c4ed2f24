// What the answers say so far: tables of estimates, each with its 95 % interval drawn under it.

import { make, named } from "./text.js";

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const FEW = 10; // with fewer labels nothing can be said about more of them

const percent = (share) => `${(100 * share).toFixed(0)} %`;
const number = (value) => value.toFixed(2);

/** Draw value and interval on a line from `from` to `to`; the numbers stand beside it. */
function bar({ value, low, high }, from = 0, to = 1) {
  const x = (share) => (100 * (share - from)) / (to - from);
  const drawing = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  drawing.append(
    svg("rect", { class: "track", x: 0, y: 4, width: 100, height: 2 }),
    svg("rect", { class: "reach", x: x(low), y: 2, width: Math.max(x(high) - x(low), 0.5), height: 6 }),
    svg("rect", { class: "value", x: Math.min(Math.max(x(value) - 0.6, 0), 98.8), y: 0, width: 1.2, height: 10 }),
  );
  return drawing;
}

/** Two lines of a table: name, value, interval, n; and the bar. */
function rowsOf(name, estimate, write, from) {
  const head = make("th", { scope: "row" }, ...[name].flat());
  if (!estimate) return [make("tr", {}, head, make("td", { colSpan: 3, className: "quiet" }, "no label yet"))];
  return [
    make(
      "tr",
      {},
      head,
      make("td", {}, make("strong", { textContent: write(estimate.value) })),
      make("td", { textContent: `${write(estimate.low)} to ${write(estimate.high)}` }),
      make("td", { textContent: estimate.n }),
    ),
    make("tr", { className: "bar", "aria-hidden": "true" }, make("td", { colSpan: 4 }, bar(estimate, from))),
  ];
}

function table(caption, rows, heads = ["", "share", "95 % interval", "n"]) {
  const head = make("tr", {}, ...heads.map((text) => make(text ? "th" : "td", text ? { scope: "col", textContent: text } : {})));
  return make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...rows));
}

function part(title, ...content) {
  return make("section", {}, make("h2", { textContent: title }), ...content);
}

function pace(progress) {
  const { answered, unsure, skipped, median_seconds: median, annotators } = progress;
  const mine = [`${answered} answered`, `${unsure} unsure`, `${skipped} skipped`];
  if (median !== null) mine.push(`${median.toFixed(1)}\u00a0s\u00a0a\u00a0row`);
  const people = Object.entries(annotators);
  const line = make("p", { textContent: mine.join(" · ") });
  if (people.length < 2) return part("You", line);
  const others = people.flatMap(([name, n], k) => [k ? ", " : "", named(name), ` ${n}`]);
  return part("You", line, make("p", { className: "quiet" }, ...others));
}

function morePart(of, more) {
  const rows = more.map(({ n, width }) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", textContent: `${n} rows` }),
      make("td", { textContent: `${(100 * width).toFixed(0)} points` }),
    ),
  );
  const caption = make("span", {}, "Expected width of the interval of ", ...of, ", if it stays as it is");
  return part("What more rows would buy", table(caption, rows, ["", "width"]));
}

function rightPart(panel, moves) {
  const each = panel.labels.flatMap(({ label, right }) => rowsOf(["says ", named(label)], right, percent));
  // A share and an estimate that starts from a prior must not stand in one column: 3 right of 3 are
  // 100 % of the first and less of the second.
  const content = [
    table("Over all rows, as counted", rowsOf("overall", panel.accuracy, percent)),
    table("By what it says: estimates that start from chance, so that a few rows move them little", each, [
      "",
      "estimate",
      "95 % interval",
      "n",
    ]),
  ];
  const left = panel.unsure + panel.unsettled;
  if (left > 0) {
    const what = `${panel.unsure} unsure, ${panel.unsettled} unsettled`;
    const textContent = `Without the rows left open (${what}): too high if those are the hard ones.`;
    content.push(make("p", { className: "quiet", textContent }));
  }
  if (moves) {
    const textContent = "Moves with every fifth label, so that it gives no row away.";
    content.push(make("p", { className: "quiet", textContent }));
  }
  return part("How often the annotator is right", ...content);
}

function labelParts(panel, moves) {
  const parts = panel.labels.length > 0 ? [rightPart(panel, moves)] : [];
  const shares = panel.classes.flatMap(({ class: name, share }) => rowsOf([named(name)], share, percent));
  parts.push(part("How frequent the classes are", table("Of all rows", shares)));
  if (panel.rows >= FEW) {
    const of = panel.of === "accuracy" ? ["the overall accuracy"] : ["the share of ", named(panel.of)];
    parts.push(morePart(of, panel.more));
  }
  return parts;
}

// `better` is null until all is answered: it would tell which answers are proposals.
function compareParts(panel) {
  if (!panel.better) return [];
  const rows = rowsOf("better", panel.better, percent);
  const parts = [part("How often the proposal is better", table("Of the pairs with an answer", rows))];
  if (panel.rows >= FEW) parts.push(morePart(["this share"], panel.more));
  return parts;
}

function agreementPart({ pairs, disagreements, settled }) {
  const rows = pairs.flatMap(({ who, kappa, reason, n }) => {
    const names = [named(who[0]), " and ", named(who[1])];
    if (kappa) return rowsOf(names, kappa, number, -1);
    const why = make("td", { colSpan: 3, className: "quiet", textContent: `none on ${n}: ${reason}` });
    return [make("tr", {}, make("th", { scope: "row" }, ...names), why)];
  });
  return part(
    "Agreement",
    table("Cohen's kappa on rows that both labelled", rows, ["", "kappa", "95 % interval", "n"]),
    make("p", { textContent: `${disagreements} disagreements, ${settled} settled` }),
  );
}

/** Fill the panel from what the server says; it tells of agreement only who has no row left. */
export function drawPanel(element, about, { progress, panel, agreement }) {
  const parts = [pace(progress)];
  if (about.kind === "label") parts.push(...labelParts(panel, !about.show_pseudo && agreement === null));
  else parts.push(...compareParts(panel));
  if (agreement?.pairs.length > 0) parts.push(agreementPart(agreement));
  element.replaceChildren(...parts);
  element.hidden = false;
}
