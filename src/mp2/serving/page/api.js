// Calls to the server. Every failure becomes an Error with the server's own words.

export const key = {
  get: () => sessionStorage.getItem("mp2-key") || "",
  set: (value) => sessionStorage.setItem("mp2-key", value.trim()),
};

async function send(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.ok) return response;
  let problem = { type: "http", message: `${response.status} ${response.statusText}`, details: [] };
  try { problem = (await response.json()).error; } catch { /* not ours: a proxy's page */ }
  const details = problem.details.slice(0, 8).map((item) => `· ${item.at ?? item.row ?? item.index ?? ""} ${item.message}`);
  const error = new Error([problem.message, ...details].join("\n"));
  error.type = problem.type;
  throw error;
}

export const getJson = async (path) => (await send("GET", path)).json();
export const postJson = async (path, body) => (await send("POST", path, body)).json();
export const remove = (path) => send("DELETE", path);

export async function allTasks() {
  const names = [];
  for (let total = 1; names.length < total;) {
    const page = await getJson(`/v1/tasks?limit=1000&offset=${names.length}`);
    names.push(...page.tasks);
    total = page.tasks.length ? page.total : 0;
  }
  return names;
}

// Server-sent events by fetch, which can carry the key; calls back with (kind, data).
export async function follow(path, onEvent) {
  const reader = (await send("GET", path)).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const blocks = text.split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const kind = /^event: (.*)$/m.exec(block), data = /^data: (.*)$/m.exec(block);
      if (kind && data) onEvent(kind[1], JSON.parse(data[1]));
    }
  }
}

export async function download(path, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await send("GET", path)).blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
