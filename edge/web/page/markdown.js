// Renders Markdown as elements. HTML is shown as text, links lead to http, https and mailto only,
// and images become links. A model may write anything: each expression takes linear time, and spans
// and nesting have bounds.

import { button, copy, h, region } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s(.*)$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^[\s|:-]+$/;
// An escaped character; code; an image or link; bold; italics; strikethrough; a bare address.
const INLINE = new RegExp([
  /\\(?<escaped>[!-/:-@[-`{-~])/,
  /(?<!`)(?<ticks>`{1,8})(?!`)(?<literal>.{1,1000}?)(?<!`)\k<ticks>(?!`)/,
  /(?<bang>!?)\[(?<label>[^\]\n]{0,500})\]\((?<target>[^()\s]{0,2000}(?:\([^()\s]{0,99}\)[^()\s]{0,99})?)(?:\s"[^"]{0,500}")?\)/,
  /(?<mark>\*\*|__)(?=\S)(?<bold>.{1,1000}?)\k<mark>(?!\*)/,
  /\*(?=[^\s*])(?<starred>.{1,1000}?)(?<!\s)\*/,
  /(?<!\w)_(?=[^\s_])(?<underlined>.{1,1000}?)(?<!\s)_(?!\w)/,
  /~~(?=\S)(?<struck>.{1,1000}?)~~/,
  /(?<bare>https?:\/\/[^\s<>"')\]]{0,2000}[^\s<>"')\].,:;!?])/,
].map(({ source }) => source).join("|"), "s");
const DEEPEST = 12;

// Elements for an answer that grows: `update` renders only the blocks that have changed.
export class Markdown {
  constructor(root) {
    this.root = root;
    this.sources = [];
  }

  update(text) {
    const found = [...parse(text.split(/\r?\n/), 0)];
    const sources = found.map(({ lines }) => lines.join("\n"));
    let same = 0;
    while (same < sources.length && sources[same] === this.sources[same]) same += 1;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    this.root.append(...found.slice(same).map(({ render }) => render()));
    this.sources = sources;
  }
}

// The blocks of a text: their lines, and functions that render them.
function* parse(lines, depth) {
  // The lines from `i` to the first one after it that ends the block.
  const take = (i, ends) => {
    let end = i + 1;
    while (end < lines.length && !ends(lines[end], lines[end - 1])) end += 1;
    return lines.slice(i, end);
  };
  for (let i = 0; i < lines.length; ) {
    const line = lines[i];
    const fence = line.match(FENCE);
    const heading = line.match(HEADING);
    let taken = [line];
    let render;
    if (fence) {
      const inside = take(i, (each) => closes(each, fence[1])).slice(1);
      taken = lines.slice(i, i + inside.length + 2);
      render = () => code(inside.join("\n"), fence[2].trim().split(/\s/)[0] || "text");
    } else if (heading) {
      // The page has h1 and h2 of its own.
      render = () => h(`h${Math.min(6, heading[1].length + 2)}`, inline(heading[2].trim().replace(/\s#+$/, "")));
    } else if (RULE.test(line)) {
      render = () => h("hr");
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      taken = take(i, (each) => !QUOTE.test(each));
      render = () => h("blockquote", blocks(taken.map((each) => each.match(QUOTE)[1]), depth + 1));
    } else if (ITEM.test(line) && depth < DEEPEST) {
      // A list goes on after a blank line if the next line is an item or has an indent.
      taken = take(i, (each, before) => !before.trim() && each.trim() && !ITEM.test(each) && !/^\s/.test(each));
      render = () => list(taken, depth);
    } else if (line.includes("|") && DIVIDER.test(lines[i + 1]) && lines[i + 1].includes("-")) {
      taken = take(i, (each) => !each.includes("|"));
      render = () => table(taken);
    } else if (line.trim()) {
      taken = take(i, (each) => !each.trim() || [FENCE, HEADING, RULE, QUOTE, ITEM].some((start) => start.test(each)));
      render = () => h("p", inline(taken.join("\n")));
    }
    i += taken.length;
    if (render) yield { lines: taken, render };
  }
}

const blocks = (lines, depth) => [...parse(lines, depth)].map(({ render }) => render());
const closes = (line, fence) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], "");

export function code(text, language) {
  return h("figure.code",
    h("figcaption", language, button("Copy", () => copy(text))),
    region("pre", `Code: ${language}`, h("code", text)));
}

function list(lines, depth) {
  const [, { length: indent }, mark] = lines[0].match(ITEM);
  const items = [];
  let offset;
  for (const line of lines) {
    const match = line.match(ITEM);
    if (match && match[1].length <= indent + 1) {
      items.push([match[3]]);
      offset = line.length - match[3].length;
    } else items.at(-1).push(line.slice(Math.min(offset, line.length - line.trimStart().length)));
  }
  const start = parseInt(mark, 10);
  return h(start >= 0 ? "ol" : "ul", { start: start > 1 && start }, items.map((item) => {
    const nodes = blocks(item, depth + 1);
    // A single paragraph needs no <p>.
    return h("li", nodes[0]?.tagName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes);
  }));
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const sides = cells(lines[1]).map((cell) => cell.endsWith(":") && (cell.startsWith(":") ? "center" : "right"));
  const row = (line, name) => h("tr", cells(line).map((cell, i) => h(name, { class: sides[i] }, inline(cell))));
  const body = lines.slice(2).map((line) => row(line, "td"));
  return region("div.wide", "Table", h("table", h("thead", row(lines[0], "th")), h("tbody", body)));
}

function inline(text, depth = 0) {
  const nodes = [];
  let rest = text;
  for (let match; depth < DEEPEST && (match = rest.match(INLINE)); rest = rest.slice(match.index + match[0].length)) {
    const { escaped, literal, bang, label, target, bold, starred, underlined, struck, bare } = match.groups;
    const nested = (name, content) => h(name, inline(content, depth + 1));
    nodes.push(...breaks(rest.slice(0, match.index)));
    if (escaped) nodes.push(escaped);
    else if (literal) nodes.push(h("code", literal));
    else if (target !== undefined) nodes.push(link(bang ? label || "image" : inline(label, depth + 1), target, match[0]));
    else if (bold) nodes.push(nested("strong", bold));
    else if (struck) nodes.push(nested("s", struck));
    else if (bare) nodes.push(link(bare, bare));
    else nodes.push(nested("em", starred ?? underlined));
  }
  return [...nodes, ...breaks(rest)];
}

const link = (children, target, whole) => (/^(https?:|mailto:)/i.test(target)
  ? h("a", { href: target, rel: "noopener noreferrer nofollow", target: "_blank" }, children)
  : whole);

// Two spaces or a backslash before a line's end break it.
const breaks = (text) => text.split(/(?: {2}|\\)\n/).flatMap((piece, i) => (i ? [h("br"), piece] : [piece]));
