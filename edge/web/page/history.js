// Conversations, kept in this browser only.
//
// A conversation is { id, title, models, values, turns }. A turn is what was sent and the answers of
// the models: { text, images, answers } or, after calls of tools, { results, answers }. The `pane` of
// a result is the number of the model that called.

const STORED = "isthmus-conversations";

export class History {
  constructor() {
    try {
      this.conversations = list(JSON.parse(localStorage.getItem(STORED) ?? "[]"), conversation);
    } catch {
      this.conversations = [];
    }
  }

  // Puts a conversation first and stores all; false if the oldest ones had no room.
  save(saved) {
    this.conversations = [saved, ...this.conversations.filter(({ id }) => id !== saved.id)];
    return this.store();
  }

  store() {
    for (let kept = this.conversations.length; ; kept -= 1) {
      try {
        localStorage.setItem(STORED, JSON.stringify(this.conversations.slice(0, kept)));
        return kept === this.conversations.length;
      } catch {
        if (!kept) return false;
      }
    }
  }

  // Removes those for which `isKept` is false.
  keep(isKept) {
    this.conversations = this.conversations.filter(isKept);
    this.store();
  }

  export() {
    return JSON.stringify({ isthmus: 1, conversations: this.conversations });
  }

  // Adds the conversations of an exported file; those that are here already are replaced.
  import(exported) {
    const added = list(JSON.parse(exported).conversations, conversation);
    for (const each of added.reverse()) this.save(each);
    return added.length;
  }
}

// These copy what a conversation has, and throw for anything else: a file may come from anywhere.
const list = (value, part) => value.map((each) => part(each));
const text = (value) => {
  if (typeof value === "string") return value;
  throw new TypeError("This is no text.");
};
const texts = (value, names) => Object.fromEntries(names.map((name) => [name, text(value[name])]));
const picture = (url) => text(/^data:image\/[a-z]+;base64,/.test(url) && url);

const conversation = (it) => ({
  ...texts(it, ["id", "title"]),
  models: list(it.models, text),
  values: texts(it.values, Object.keys(it.values)),
  turns: list(it.turns, turn),
});

const turn = (it) => ({
  ...(it.results
    ? { results: list(it.results, (each) => ({ ...texts(each, ["id", "content"]), pane: +(each.pane ?? 0) })) }
    : { text: text(it.text), images: list(it.images, picture) }),
  answers: list(it.answers, (each) => each && answer(each)),
});

const answer = (it) => ({
  ...texts(it, ["model", "content", "reasoning", "figures"]),
  calls: list(it.calls, (each) => texts(each, ["id", "name", "arguments"])),
  error: it.error && texts(it.error, ["message", "details", "requestId"]),
});
