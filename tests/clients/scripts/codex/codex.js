// The Codex CLI, which speaks /v1/responses only; ISTHMUS_URL is the edge's URL.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

const CODEX = fileURLToPath(import.meta.resolve("@openai/codex/bin/codex.js"));
const CONFIG = `
model = "gpt-4o-mini"
model_provider = "isthmus"
approval_policy = "never"
sandbox_mode = "danger-full-access"

[model_providers.isthmus]
name = "isthmus"
base_url = "${process.env.ISTHMUS_URL}/v1"
wire_api = "responses"
env_key = "ISTHMUS_KEY"
request_max_retries = 0
stream_max_retries = 0
`;

// Runs `codex exec` in a folder of its own; returns the items of its output.
async function codex(prompt) {
  const folder = await mkdtemp(join(tmpdir(), "codex-"));
  try {
    const [home, work] = [join(folder, "home"), join(folder, "work")];
    await Promise.all([mkdir(home), mkdir(work)]);
    await writeFile(join(home, "config.toml"), CONFIG);
    const env = { ...process.env, CODEX_HOME: home, HOME: folder, ISTHMUS_KEY: "none" };
    const args = [CODEX, "exec", "--skip-git-repo-check", "--json", prompt];
    const lines = await new Promise((resolve, reject) => {
      const child = execFile(
        process.execPath,
        args,
        { cwd: work, env, timeout: 120_000, maxBuffer: 1 << 24 },
        (error, stdout, stderr) => (error ? reject(new Error(`${error}\n${stdout}\n${stderr}`)) : resolve(stdout)),
      );
      child.stdin.end();
    });
    const events = lines.trim().split("\n").map((line) => JSON.parse(line));
    assert.equal(events.at(-1).type, "turn.completed");
    assert.ok(events.at(-1).usage.output_tokens > 0);
    return events.filter((event) => event.type === "item.completed").map((event) => event.item);
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

function said(items) {
  return items.findLast((item) => item.type === "agent_message").text;
}

test("streamed answer is shown", async () => {
  assert.equal(said(await codex("What is the capital of France?")), "The capital of France is Paris.");
});

test("tools run a command and the model gets its output", async () => {
  const items = await codex("Use exec_command with only cmd = pwd.");
  const command = items.find((item) => item.type === "command_execution");
  assert.equal(command.exit_code, 0);
  assert.match(said(items), /The tools returned: [^]*\/work/);
});

test("tools of a namespace make a round trip", async () => {
  // No agent has this name, which only the tool itself can say.
  const items = await codex("Use multi_agent_v1__close_agent with target = nobody.");
  assert.match(said(items), /The tools returned: .*nobody/);
});
