// The page: one row at a time, one key an answer. What a key does is in `commands`.

import { ask, Refused, tryAsk } from "./server.js";
import { drawPanel } from "./panel.js";
import { make, named, Pane, visible } from "./text.js";

const OWN_KEYS = "uspnh"; // undo, skip, the annotator's label, note, help
const CLASS_KEYS = [..."123456789abcdefghijklmnopqrstuvwxyz"].filter((key) => !OWN_KEYS.includes(key));
const MANY_CLASSES = 12; // from here on a box narrows them
const WARN_AT = 10; // seconds before the end of a time limit
const COMPARED = {
  left: { name: "Left is better", keys: ["ArrowLeft", "1"], cap: "←" },
  right: { name: "Right is better", keys: ["ArrowRight", "2"], cap: "→" },
  same: { name: "Equally good", keys: ["=", "3"], cap: "=" },
};

const at = (id) => document.getElementById(id);
const VIEWS = ["start", "pause", "work", "end", "over"];

let about; // what is labelled: kind, classes, show_pseudo, seconds, title, criterion
let who = "";
let view = "";
let item = null; // the row on the page
let progress = null; // how far this person is
let panes = [];
let commands = []; // of the row or view on the page: {keys, cap, name, act, button}
let busy = false; // an answer is under way: nothing else until it is on disk
let pseudoShown = true;
let settling = null; // the disagreements, while they are being settled
let settlements = []; // what this person settled on this page, the last one last: {row, was}
let spent = 0; // milliseconds on this row while the page was in view
let since = null;

// --- time ----------------------------------------------------------------------------------------

const now = () => performance.now();
const seconds = () => (spent + (since === null ? 0 : now() - since)) / 1000;

function startClock() {
  spent = 0;
  since = document.hidden ? null : now();
  at("clock-news").textContent = "";
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden && since !== null) {
    spent += now() - since;
    since = null;
  } else if (!document.hidden) since = now();
});

const timed = () => view === "work" && about.seconds !== null && item !== null && settling === null;

function tick() {
  if (!timed() || busy) return;
  const left = Math.max(0, Math.ceil(about.seconds - seconds()));
  const clock = at("clock");
  clock.textContent = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
  clock.classList.toggle("soon", left <= WARN_AT);
  if (left === WARN_AT && about.seconds > WARN_AT) at("clock-news").textContent = `${WARN_AT} seconds left`;
  if (seconds() >= about.seconds) expire();
}

// The next row waits for a key: who has left the desk loses one answer and not all of them.
async function expire() {
  const next = await send("answer", { row: item.row, value: null, seconds: about.seconds, note: note() });
  if (!next) return pause("Time is up", "The server has refused to keep that; see above.", { item, progress });
  if (next.item === null) return present(next);
  pause("Time is up", "This pair was left without an answer. The clock starts again when you go on.", next);
}

// --- the server ----------------------------------------------------------------------------------

function trouble(message) {
  at("trouble").textContent = message;
  at("trouble").hidden = !message;
}

function lost(isLost) {
  if (document.body.classList.contains("lost") === isLost) return; // what else is said stays
  document.body.classList.toggle("lost", isLost);
  trouble(
    isLost
      ? "The server has ended; start it again with the same command. What you have just entered is kept on this page and sent as soon as the server is back."
      : "",
  );
}

/** Send what was decided, once; undefined if something else is under way or it was refused. */
async function send(path, body = {}) {
  if (busy) return undefined;
  busy = true;
  document.body.classList.add("busy");
  try {
    return await ask(`api/${path}`, { who, ...body }, lost);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    trouble(error.message);
    return undefined;
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

/** Have the table written; nothing waits for it, since every answer is on disk already. */
async function write() {
  try {
    return await ask("api/write", { who }, lost);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    trouble(error.message);
    return undefined;
  }
}

/** Say that a key was not taken. It is not kept for the next row, which nobody had read by then. */
function drop(dropped) {
  at("dropped").textContent = dropped ? "That was not taken: the answer before it was still being stored." : "";
}

let drawing = false;
let drawAgain = false;

/** Fetch the estimates after the row is on the page, so that nobody waits for them. */
async function refreshPanel() {
  if (drawing) {
    drawAgain = true;
    return;
  }
  drawing = true;
  do {
    drawAgain = false;
    const asked = who;
    const found = await tryAsk("api/panel", { who });
    if (found && asked === who) {
      // null until this person is done: nothing may tell how others have answered
      const { disagreements, settled } = found.agreement ?? { disagreements: 0, settled: 0 };
      at("settle-open").hidden = about.kind !== "label" || disagreements === 0;
      at("settle-open").textContent = `Settle (${disagreements - settled})`;
      drawPanel(at("panel"), about, found);
    }
  } while (drawAgain);
  drawing = false;
}

// --- views ---------------------------------------------------------------------------------------

function show(name) {
  view = name;
  for (const id of VIEWS) at(id).hidden = id !== name;
  at("who-open").hidden = !who || name === "start" || name === "over";
  at("progress").hidden = progress === null || name === "start" || name === "over";
}

function use(list) {
  commands = list;
}

function say(text) {
  at("news").textContent = text;
}

function drawProgress() {
  const done = progress.answered + progress.unsure;
  at("bar").max = Math.max(progress.total, 1);
  at("bar").value = done;
  at("count").textContent = `${done} of ${progress.total}`;
  document.title = `${done}/${progress.total} ${visible(about.title)}`;
}

/** Show the next row, or the end. */
function present(next) {
  item = next.item;
  progress = next.progress;
  settling = null;
  drawProgress();
  if (item === null) presentEnd();
  else presentRow();
  refreshPanel();
}

function presentRow() {
  show("work");
  at("row-title").textContent = `Row ${item.position} of ${item.total}`;
  at("answers-of").hidden = true;
  drawPanes();
  drawPseudo();
  setNote(item.note);
  const list = [...answerCommands(answer), ...rowCommands()];
  use(list);
  drawButtons(list);
  at("clock").hidden = about.seconds === null;
  startClock();
  tick();
  toRow();
  const start = panes.map((pane) => pane.text.slice(0, 300)).join(" / ");
  say(`Row ${item.position} of ${item.total}. ${start}`);
}

function drawPanes() {
  const names = { text: "Text", prompt: "Prompt", left: "Left", right: "Right" };
  panes = Object.entries(item.shown).map(([name, text]) => new Pane(names[name], text, `of-${name}`));
  at("panes").replaceChildren(...panes.map((pane) => pane.element));
  at("find-box").hidden = panes.length === 0;
  mark();
}

function mark() {
  const query = at("find").value;
  const found = panes.map((pane) => pane.mark(query)).reduce((sum, n) => sum + n, 0);
  at("found").textContent = query.trim() ? `${found.toLocaleString("en")} found` : "";
}

function drawPseudo() {
  const known = about.show_pseudo && item.pseudo !== null && pseudoShown;
  at("before").hidden = !known;
  at("before").replaceChildren(...(known ? ["The annotator says ", make("strong", {}, named(item.pseudo))] : []));
}

function answerCommands(act) {
  if (about.kind === "compare") {
    return about.classes.map((value) => ({ ...COMPARED[value], value, act: () => act(value) }));
  }
  return about.classes.map((value, k) => ({
    keys: CLASS_KEYS[k] ? [CLASS_KEYS[k]] : [],
    cap: CLASS_KEYS[k],
    name: value,
    value,
    act: () => act(value),
  }));
}

function rowCommands() {
  const list = [
    { keys: ["0", "?"], cap: "0", name: about.kind === "compare" ? "Cannot say" : "Unsure", act: () => answer(null) },
    { keys: ["s"], cap: "s", name: "Skip", act: skip },
    { keys: ["u"], cap: "u", name: "Undo", act: undo },
    { keys: ["n"], cap: "n", name: "Note", act: openNote },
  ];
  if (about.show_pseudo) list.push({ keys: ["p"], cap: "p", name: "Annotator's label", act: togglePseudo });
  return list;
}

function drawButtons(list) {
  const made = list.map((command) => {
    const button = make("button", { type: "button" }, named(command.name));
    if (command.cap) button.append(make("kbd", { textContent: command.cap }));
    button.addEventListener("click", () => run(command));
    if (command.value !== undefined && item.answered === command.value) {
      button.classList.add("chosen");
      button.append(make("span", { className: "off-screen", textContent: " (your answer before)" }));
    }
    command.button = button;
    return button;
  });
  const isAnswer = (_, k) => list[k].value !== undefined;
  const answers = made.filter(isAnswer);
  at("answers").replaceChildren(...answers);
  at("answers").classList.toggle("many", answers.length > MANY_CLASSES);
  at("actions").replaceChildren(...made.filter((_, k) => !isAnswer(_, k)));
  at("filter-box").hidden = answers.length <= MANY_CLASSES;
  at("filter").value = "";
  at("unmatched").textContent = "";
}

async function presentEnd() {
  show("end");
  use([{ keys: ["u"], cap: "u", name: "Undo", act: undo }]);
  const { answered, unsure } = progress;
  at("end-count").textContent = `${answered} answered${unsure ? `, ${unsure} unsure` : ""}. Thank you, ${who}.`;
  at("end-path").textContent = "Writing the table …";
  at("end-next").hidden = true;
  at("end-title").focus();
  say("All rows are done.");
  const written = await write();
  if (!written || view !== "end") return;
  at("end-path").replaceChildren("Written to ", make("code", {}, named(written.path)));
  // a line may end between two words only, not at the hyphens of a flag
  const words = written.command.split(" ").map((word) => make("span", { textContent: word }));
  at("end-command").replaceChildren(...words.flatMap((word, k) => (k ? [" ", word] : [word])));
  at("end-next").hidden = !written.command;
}

function pause(title, text, next) {
  item = next.item;
  progress = next.progress;
  drawProgress();
  show("pause");
  at("pause-title").textContent = title;
  at("pause-text").textContent = text;
  const goOn = () => present(next);
  at("go-on").onclick = goOn;
  use([
    { keys: ["Enter", " "], cap: "Enter", name: "Go on", act: goOn },
    { keys: ["u"], cap: "u", name: "Undo", act: undo },
  ]);
  at("go-on").focus();
  say(`${title}. ${text}`);
  refreshPanel();
}

/** Put the keyboard on the row, where the arrow keys scroll; without single keys on its answers. */
function toRow() {
  const place = keysOn() ? panes[0]?.scroll : at("answers").querySelector("button:not([hidden])");
  (place ?? at("row-title")).focus({ preventScroll: true });
}

// --- what a key does -----------------------------------------------------------------------------

const note = () => at("note").value.trim();

function setNote(text) {
  at("note").value = text;
  at("note-box").hidden = text === "";
}

function openNote() {
  at("note-box").hidden = false;
  at("note").focus();
}

function togglePseudo() {
  pseudoShown = !pseudoShown;
  drawPseudo();
}

async function answer(value) {
  const next = await send("answer", { row: item.row, value, seconds: seconds(), note: note() });
  if (next) present(next);
}

async function skip() {
  const next = await send("skip", { row: item.row });
  if (next) present(next);
}

async function undo() {
  const back = await send("undo");
  if (!back) return;
  if (back.item === null) trouble("There is no answer to take back.");
  else present(back);
}

async function run(command) {
  drop(busy);
  if (busy) return;
  trouble("");
  command.button?.classList.add("pressed");
  await command.act();
  command.button?.classList.remove("pressed");
}

const keysOn = () => at("keys-on").checked;

/** The key's letter; where a keyboard has other letters or shifted digits, that of its place. */
function namesOf(event) {
  const place = event.code.match(/^(?:Key|Digit)(.)$/u)?.[1];
  return [event.key, event.key.toLowerCase(), ...(place ? [place.toLowerCase()] : [])];
}

function inField(target) {
  return target.matches?.("input:not([type=checkbox]), textarea");
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (at("help").open) return;
  if (inField(event.target)) {
    if (event.key === "Escape" || (event.key === "Enter" && view === "work")) leaveField(event);
    return;
  }
  if (event.target.closest?.("button, summary, a") && (event.key === "Enter" || event.key === " ")) {
    if (event.repeat) event.preventDefault(); // a key held down is one answer
    return;
  }
  if (event.repeat || !keysOn()) return;
  for (const key of namesOf(event)) {
    const command = commands.concat(pageCommands()).find(({ keys }) => keys.includes(key));
    if (command) {
      event.preventDefault();
      run(command);
      return;
    }
  }
});

function leaveField(event) {
  if (event.target === at("filter") && event.key === "Enter" && at("filter").value.trim()) {
    const first = commands.find(({ value, button }) => value !== undefined && !button.hidden);
    if (!first) return; // nothing was found: what is typed next is still meant for the box
    run(first);
  }
  event.preventDefault();
  event.target.blur();
  toRow();
}

function pageCommands() {
  const list = [{ keys: ["h"], cap: "h", name: "Help", act: openHelp }];
  if (view === "work") {
    const box = about.classes.length > MANY_CLASSES ? "filter" : "find";
    list.push({ keys: ["/"], cap: "/", name: box === "find" ? "Find words" : "Find a label", act: () => at(box).focus() });
  }
  return list;
}

function openHelp() {
  const rows = commands.concat(pageCommands()).filter(({ keys }) => keys.length > 0);
  const shownKeys = { ArrowLeft: "←", ArrowRight: "→", " ": "Space" };
  at("help-keys").replaceChildren(
    ...rows.flatMap(({ keys, name }) => [
      make("dt", {}, ...keys.map((key) => make("kbd", { textContent: shownKeys[key] ?? key }))),
      make("dd", {}, named(name)),
    ]),
  );
  at("help").showModal();
}

// --- disagreements -------------------------------------------------------------------------------

async function openSettle() {
  const found = await send("disagreements");
  if (found) presentSettle(found.rows);
}

/** Show the next open disagreement after a row, or that there is none. */
function presentSettle(rows, row) {
  settling = rows;
  const open = rows.flatMap(({ settled }, k) => (settled === null ? [k] : []));
  const here = rows.findIndex((found) => found.row === row);
  presentDisagreement(open.find((k) => k > here) ?? open[0] ?? -1);
}

/** Show one disagreement; with -1 the list only, so that no key changes what is settled. */
function presentDisagreement(k) {
  const found = settling[k] ?? { shown: {}, settled: null };
  item = { ...found, answered: found.settled, note: "", pseudo: null };
  show("work");
  const left = settling.filter(({ settled }) => settled === null).length;
  at("row-title").textContent = k < 0 && left === 0 ? "All settled" : `Settle a disagreement, ${left} left`;
  drawPanes();
  drawPseudo();
  setNote("");
  drawAnswers(k);
  refreshPanel();
  const list = [
    ...(k < 0 ? [] : settleCommands(k)),
    { keys: ["u"], cap: "u", name: "Undo", act: unsettle },
    { keys: ["Escape"], cap: "Esc", name: "Back to the rows", act: goBack },
  ];
  use(list);
  drawButtons(list);
  at("clock").hidden = true;
  toRow();
  sayDisagreement(k);
}

function settleCommands(k) {
  const { row, settled } = settling[k];
  const settle = async (value) => {
    const found = await send("settle", { row, value });
    if (!found) return;
    settlements.push({ row, was: settled });
    presentSettle(found.rows, row);
  };
  const next = () => presentDisagreement((k + 1) % settling.length);
  return [...answerCommands(settle), { keys: ["s"], cap: "s", name: "Next", act: next }];
}

/** Take the last settlement back, never an answer: those are undone among the rows. */
async function unsettle() {
  const last = settlements.pop();
  if (!last) return trouble("Nothing was settled since you came: open a row in the list to change it.");
  const { row, was } = last;
  const found = await (was === null ? send("unsettle", { row }) : send("settle", { row, value: was }));
  if (!found) return;
  settling = found.rows;
  presentDisagreement(settling.findIndex((one) => one.row === row));
}

function sayDisagreement(k) {
  if (k < 0) return say(at("row-title").textContent);
  const said = Object.entries(settling[k].answers).map(([name, value]) => `${name} says ${visible(value)}`);
  say(`Disagreement ${k + 1} of ${settling.length}. ${said.join(", ")}. ${panes[0].text.slice(0, 300)}`);
}

function drawAnswers(k) {
  const chips = Object.entries(settling[k]?.answers ?? {}).map(([name, value]) =>
    make("li", {}, named(name), " says ", make("strong", {}, named(value))),
  );
  const list = settling.map((row, n) => {
    const state = row.settled === null ? "open" : "settled: ";
    const button = make("button", { type: "button" }, `${n + 1} ${state}`);
    if (row.settled !== null) button.append(named(row.settled));
    if (n === k) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => run({ act: () => presentDisagreement(n) }));
    return make("li", {}, button);
  });
  at("answers-of").replaceChildren(
    make("ul", { className: "said" }, ...chips),
    make("ol", { className: "open", "aria-label": "Disagreements" }, ...list),
  );
  at("answers-of").hidden = false;
}

async function goBack() {
  const next = await send("next");
  if (next) present(next);
}

// --- who -----------------------------------------------------------------------------------------

const NAME = "whet-label-name";

function nameInAddress() {
  return new URLSearchParams(location.hash.slice(1)).get("who") ?? "";
}

function askName() {
  let last = null;
  try {
    last = localStorage.getItem(NAME);
  } catch {
    // a browser that keeps nothing asks again
  }
  at("name").value = who || last || "me";
  at("start-time").hidden = about.seconds === null;
  at("start-time").textContent = `There are ${about.seconds} seconds for each pair. The clock starts when you begin.`;
  use([]);
  show("start");
  at("name").select();
  at("name").focus();
}

async function begin(name) {
  if (name !== who) {
    settlements = [];
    at("settle-open").hidden = at("panel").hidden = true; // it is another person's
  }
  who = name;
  at("who").textContent = who;
  const next = await send("next");
  if (next) present(next);
}

at("start-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = at("name").value.trim();
  if (!name) return;
  try {
    localStorage.setItem(NAME, name);
  } catch {
    // as above
  }
  history.replaceState(null, "", `#${new URLSearchParams({ who: name })}`);
  begin(name);
});

window.addEventListener("hashchange", () => {
  if (nameInAddress() && nameInAddress() !== who) run({ act: () => begin(nameInAddress()) });
});

async function finish() {
  if (!(await send("finish"))) return;
  use([]);
  show("over");
  at("settle-open").hidden = true;
  at("over-title").focus();
}

// --- all the rest --------------------------------------------------------------------------------

at("find").addEventListener("input", mark);
at("filter").addEventListener("input", () => {
  const wanted = at("filter").value.trim().toLocaleLowerCase();
  const answers = commands.filter(({ value }) => value !== undefined);
  for (const { name, button } of answers) button.hidden = !name.toLocaleLowerCase().includes(wanted);
  const none = answers.every(({ button }) => button.hidden);
  at("unmatched").textContent = none ? "No label has this in its name." : "";
});
at("help-open").addEventListener("click", openHelp);
at("help").addEventListener("close", () => view === "work" && keysOn() && toRow());
for (const [id, act] of [
  ["who-open", askName],
  ["settle-open", openSettle],
  ["pause-undo", undo],
  ["end-undo", undo],
  ["finish", finish],
]) {
  at(id).addEventListener("click", () => run({ act }));
}
setInterval(tick, 200);

about = await ask("api/about", undefined, lost).catch((error) => trouble(error.message));
if (about) {
  at("title").textContent = visible(about.title);
  at("criterion").hidden = !about.criterion;
  at("criterion").textContent = visible(about.criterion ?? "");
  at("work").className = about.kind;
  document.title = visible(about.title);
  who = nameInAddress();
  at("who").textContent = who;
  if (who && about.seconds === null) begin(who);
  else askName(); // with a time limit the clock must not start before anybody looks
}
