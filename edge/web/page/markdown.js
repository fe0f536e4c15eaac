// Renders Markdown as elements. HTML in it is shown as text; links lead to http, https and mailto
// only; images become links, because the page loads nothing from other hosts.

import { button, copy, h } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const RULE = /^ {0,3}([-*_])(\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const QUOTE = /^ {0,3}>\s?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
// An escaped character, code, an image or link, bold, italics, strikethrough, a bare address.
const INLINE = /\\([!-\/:-@[-`{-~])|(`+)(.+?)\2(?!`)|(!?)\[([^\]\n]*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"]*")?\)|\*\*(?=\S)(.+?)\*\*|__(?=\S)(.+?)__|\*(?=[^\s*])(.+?)\*|(?<![\w])_(?=[^\s_])(.+?)_(?!\w)|~~(?=\S)(.+?)~~|(https?:\/\/[^\s<>"')\]]+)/su;
const DEEPEST = 12;

// Nodes for an answer that grows: `update` renders again only the blocks that have changed.
export class Markdown {
  constructor(root) {
    this.root = root;
    this.sources = [];
  }

  update(text) {
    const sources = split(text);
    let same = 0;
    while (same < sources.length && sources[same] === this.sources[same]) same += 1;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    for (const source of sources.slice(same)) this.root.append(h("div", {}, block(source.split("\n"), 0)));
    this.sources = sources;
  }
}

// Top-level blocks: what blank lines part, with fences and lists kept whole.
function split(text) {
  const found = [];
  let lines = [];
  let fence = "";
  const flush = () => {
    if (lines.some((line) => line.trim())) found.push(lines.join("\n"));
    lines = [];
  };
  for (const line of text.replace(/\r\n?/g, "\n").split("\n")) {
    const mark = line.match(FENCE);
    if (fence) {
      lines.push(line);
      if (closes(line, fence)) {
        fence = "";
        flush();
      }
      continue;
    }
    if (mark) {
      flush();
      fence = mark[1];
    } else if (!line.trim() && !lines.some((each) => ITEM.test(each))) {
      flush();
      continue;
    } else if (lines.length && !lines.at(-1).trim() && !/^\s/.test(line) && !ITEM.test(line)) {
      flush();
    }
    lines.push(line);
  }
  flush();
  return found;
}

const closes = (line, fence) => line.trim().startsWith(fence) && !line.trim().slice(fence.length).replaceAll(fence[0], "");

function block(lines, depth) {
  const nodes = [];
  for (let i = 0; i < lines.length; ) {
    const line = lines[i];
    let match;
    if (!line.trim()) {
      i += 1;
    } else if ((match = line.match(FENCE))) {
      let end = i + 1;
      while (end < lines.length && !closes(lines[end], match[1])) end += 1;
      nodes.push(code(lines.slice(i + 1, end).join("\n"), match[2]));
      i = end + 1;
    } else if ((match = line.match(HEADING))) {
      // The page has h1 and h2 of its own.
      nodes.push(h(`h${Math.min(6, match[1].length + 2)}`, {}, inline(match[2])));
      i += 1;
    } else if (RULE.test(line)) {
      nodes.push(h("hr"));
      i += 1;
    } else if (QUOTE.test(line) && depth < DEEPEST) {
      const end = until(lines, i, (each) => !QUOTE.test(each));
      nodes.push(h("blockquote", {}, block(lines.slice(i, end).map((each) => each.match(QUOTE)[1]), depth + 1)));
      i = end;
    } else if (ITEM.test(line) && depth < DEEPEST) {
      const end = until(lines, i, (each, n) => each.trim() && !ITEM.test(each) && !/^\s/.test(each) && !lines[n - 1].trim());
      nodes.push(list(lines.slice(i, end), depth));
      i = end;
    } else if (line.includes("|") && DIVIDER.test(lines[i + 1] ?? "") && lines[i + 1].includes("-")) {
      const end = until(lines, i, (each) => !each.includes("|"));
      nodes.push(table(lines.slice(i, end)));
      i = end;
    } else {
      const end = until(lines, i, (each) => !each.trim() || FENCE.test(each) || HEADING.test(each) || RULE.test(each) || QUOTE.test(each) || ITEM.test(each));
      nodes.push(h("p", {}, inline(lines.slice(i, end).join("\n"))));
      i = end;
    }
  }
  return nodes;
}

function until(lines, start, ends) {
  let end = start + 1;
  while (end < lines.length && !ends(lines[end], end)) end += 1;
  return end;
}

export function code(text, language = "") {
  return h(
    "figure",
    { class: "code" },
    h("figcaption", {}, language || "text", button("Copy", () => copy(text))),
    h("pre", { tabindex: 0, role: "region", "aria-label": `Code: ${language || "text"}` }, h("code", {}, text)),
  );
}

function list(lines, depth) {
  const first = lines[0].match(ITEM);
  const indent = first[1].length;
  const items = [];
  for (const line of lines) {
    const match = line.match(ITEM);
    if (match && match[1].length <= indent + 1) items.push([match[3]]);
    else items.at(-1).push(line.slice(Math.min(indent + 2, line.length - line.trimStart().length)));
  }
  const ordered = /\d/.test(first[2]);
  const start = ordered && parseInt(first[2], 10) !== 1 ? parseInt(first[2], 10) : null;
  return h(ordered ? "ol" : "ul", { start }, items.map((item) => {
    const [task, done] = item[0].match(/^\[([ xX])\]\s/) ?? [];
    if (task) item[0] = `${done === " " ? "☐" : "☑"} ${item[0].slice(4)}`;
    const nodes = block(item, depth + 1);
    // A single paragraph needs no <p>.
    return h("li", {}, ...(nodes[0]?.tagName === "P" ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes));
  }));
}

function table(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());
  const sides = cells(lines[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "right") : "left"));
  const row = (line, name) => h("tr", {}, cells(line).map((cell, i) => h(name, { class: sides[i] }, inline(cell))));
  return h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": "Table" },
    h("table", {}, h("thead", {}, row(lines[0], "th")), h("tbody", {}, lines.slice(2).map((line) => row(line, "td")))));
}

function inline(text, depth = 0) {
  const nodes = [];
  let rest = text;
  while (rest) {
    const match = depth < DEEPEST && rest.match(INLINE);
    if (!match) break;
    const [whole, escaped, ticks, literal, bang, label, target, bold, bold2, italic, italic2, struck, bare] = match;
    nodes.push(...breaks(rest.slice(0, match.index)));
    if (escaped) nodes.push(escaped);
    else if (ticks) nodes.push(h("code", {}, literal));
    else if (target !== undefined) nodes.push(link(bang ? [label || "image"] : inline(label, depth + 1), target, whole));
    else if (bold ?? bold2) nodes.push(h("strong", {}, inline(bold ?? bold2, depth + 1)));
    else if (italic ?? italic2) nodes.push(h("em", {}, inline(italic ?? italic2, depth + 1)));
    else if (struck) nodes.push(h("s", {}, inline(struck, depth + 1)));
    else nodes.push(link([bare], bare, bare));
    rest = rest.slice(match.index + whole.length);
  }
  return [...nodes, ...breaks(rest)];
}

function link(children, target, whole) {
  return /^(https?:|mailto:)/i.test(target)
    ? h("a", { href: target, rel: "noopener noreferrer nofollow", target: "_blank" }, children)
    : document.createTextNode(whole);
}

// Two spaces or a backslash before a line's end break it.
function breaks(text) {
  return text.split(/(?: {2,}|\\)\n/).flatMap((piece, i) => (i ? [h("br"), piece] : [piece])).filter((piece) => piece !== "");
}
