// Conversations, kept in this browser only.

const STORED = "isthmus-conversations";

export class History {
  constructor() {
    try {
      this.conversations = check(JSON.parse(localStorage.getItem(STORED) ?? "[]"));
    } catch {
      this.conversations = [];
    }
  }

  // Puts a conversation first and stores all; without room, the oldest ones go.
  save(conversation) {
    this.conversations = [conversation, ...this.conversations.filter(({ id }) => id !== conversation.id)];
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

  remove(id) {
    this.conversations = this.conversations.filter((each) => each.id !== id);
    this.store();
  }

  clear() {
    this.conversations = [];
    localStorage.removeItem(STORED);
  }

  export() {
    return JSON.stringify({ isthmus: 1, conversations: this.conversations }, null, 2);
  }

  // Adds the conversations of an exported file; those that are here already are replaced.
  import(text) {
    const { isthmus, conversations } = JSON.parse(text);
    if (isthmus !== 1) throw new Error("This file is no export of this page.");
    for (const conversation of check(conversations).reverse()) this.save(conversation);
    return conversations.length;
  }
}

// Throws unless each entry has the form of a conversation: the file may come from anywhere.
function check(conversations) {
  const isText = (value) => typeof value === "string";
  const isAnswer = (answer) => answer === null || (isText(answer?.model) && isText(answer.content) && isText(answer.reasoning) && Array.isArray(answer.calls));
  const isTurn = ({ answers, text, images, results }) =>
    Array.isArray(answers) && answers.every(isAnswer) && (results ? Array.isArray(results) : isText(text) && Array.isArray(images));
  for (const { id, title, models, turns, values } of conversations) {
    if (!isText(id) || !isText(title) || !Array.isArray(models) || !Array.isArray(turns) || !turns.every(isTurn) || typeof values !== "object") {
      throw new Error("This file holds something that is no conversation.");
    }
  }
  return conversations;
}
