// Puts texts on the page. They are data: all goes through textContent, nothing is ever parsed.

// More would make a browser slow; the rest follows on request.
const SHOWN = 100_000;
const MOST_MARKS = 1000;
// Browsers lay out one block in a time that grows with the square of its length.
const BLOCK = 8000;
const LONG_NAME = 60;

/** Make an element: its tag, properties, and children (elements or strings). */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

const ESCAPES = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };

function escape(character) {
  const code = character.codePointAt(0).toString(16);
  if (code.length <= 2) return ESCAPES[character] ?? `\\x${code.padStart(2, "0")}`;
  return code.length <= 4 ? `\\u${code.padStart(4, "0")}` : `\\U${code.padStart(8, "0")}`;
}

/** Write a name's control characters and marks of direction as escapes: as the terminal does. */
export function visible(text) {
  // joiners stay, which scripts and emoji need
  return text.replace(/(?![\u200C\u200D])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/gu, escape);
}

/** Make a name that somebody else chose; a long one is cut by the style, and whole in its title. */
export function named(text) {
  const name = make("bdi", { textContent: visible(text) });
  if (name.textContent.length > LONG_NAME) {
    name.className = "long-name";
    name.title = name.textContent;
  }
  return name;
}

function wordsOf(query) {
  const words = query.split(/\s+/u).filter(Boolean);
  if (words.length === 0) return null;
  const escaped = words.map((word) => word.replace(/[\\^$.*+?()[\]{}|/]/gu, "\\$&"));
  return new RegExp(escaped.join("|"), "giu");
}

/** Put a text into an element, at most `most` of its words in <mark>; returns how many are. */
function fill(element, text, pattern, most) {
  const parts = [];
  let from = 0;
  let found = 0;
  for (const match of pattern ? text.matchAll(pattern) : []) {
    if (found === most) break;
    parts.push(text.slice(from, match.index), make("mark", { textContent: match[0] }));
    from = match.index + match[0].length;
    found += 1;
  }
  element.replaceChildren(...parts, text.slice(from));
  return found;
}

/** Cut a text into blocks: after a line, else after a word, else anywhere. */
function blocksOf(text) {
  const blocks = [];
  let rest = text;
  while (rest.length > BLOCK) {
    const next = firstOf(rest, BLOCK);
    const end = [next.lastIndexOf("\n"), next.lastIndexOf(" ")].find((at) => at > BLOCK / 8);
    blocks.push(end === undefined ? next : next.slice(0, end + 1));
    rest = rest.slice(blocks.at(-1).length);
  }
  return [...blocks, rest];
}

function firstOf(text, length) {
  const end = /[\uD800-\uDBFF]/u.test(text[length - 1] ?? "") ? length - 1 : length;
  return text.slice(0, end); // not through the middle of a character
}

/** A pane with a heading and one text, which scrolls in it. */
export class Pane {
  constructor(name, text, kind) {
    this.text = text;
    this.length = SHOWN;
    this.body = make("div", { className: "text", dir: "auto" });
    this.more = make("button", { type: "button", className: "more" });
    this.more.addEventListener("click", () => {
      this.length += 10 * SHOWN;
      this.mark(this.query);
    });
    const heading = make("h2", { textContent: name, id: `pane-${name.replace(/\W/gu, "")}` });
    this.scroll = make(
      "div",
      { className: "scroll", tabIndex: 0, role: "region", "aria-labelledby": heading.id },
      this.body,
      this.more,
    );
    this.element = make("section", { className: `pane ${kind}` }, heading, this.scroll);
    this.mark("");
  }

  /** Mark words; returns how many were found in the part that is shown. */
  mark(query) {
    this.query = query;
    const shown = firstOf(this.text, this.length);
    const rest = this.text.length - shown.length;
    this.more.hidden = rest === 0;
    this.more.textContent = `Show more (${rest.toLocaleString("en")} characters follow)`;
    this.body.classList.toggle("nothing", this.text === "");
    if (this.text === "") this.body.replaceChildren("(empty)");
    else return this.#fill(shown, wordsOf(query));
    return 0;
  }

  #fill(text, pattern) {
    let found = 0;
    const blocks = blocksOf(text).map((part) => {
      const block = make("div", { className: "block" });
      found += fill(block, part, pattern, MOST_MARKS - found);
      return block;
    });
    this.body.classList.toggle("long", blocks.length > 1);
    this.body.replaceChildren(...blocks);
    return found;
  }
}
