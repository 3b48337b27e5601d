// What plain forms cannot do: answers as they stream, pages that follow a job, and a question
// before a change. Without scripts, every page works. All that comes from outside is text.
"use strict";

for (const form of document.querySelectorAll("form[data-confirm]"))
  form.addEventListener("submit", (event) => {
    if (!window.confirm(form.dataset.confirm)) event.preventDefault();
  });

// A part of a page that the server renders again every few seconds.
for (const part of document.querySelectorAll("[data-live]")) follow(part);

function follow(part) {
  const timer = setInterval(async () => {
    const selected = document.getSelection();
    // Who is copying text out of it keeps the text.
    if (document.hidden || (!selected.isCollapsed && part.contains(selected.anchorNode))) return;
    const answer = await fetch(part.dataset.live).catch(() => null);
    if (answer?.status === 401) return location.reload();
    if (!answer?.ok) return;
    const html = await answer.text(), focus = document.activeElement?.id;
    if (part.innerHTML !== html) {
      part.innerHTML = html; // made by the server's templates, which escape
      if (focus) document.getElementById(focus)?.focus();
    }
    if (part.querySelector("[data-ended]")) clearInterval(timer);
  }, 2000);
}

// Side by side: one stream for each model, at the same time.
const compare = document.querySelector("form[data-stream]");
compare?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = new FormData(compare), button = compare.querySelector("button");
  const models = fields.get("models").split(/[\n,]/).map((name) => name.trim()).filter(Boolean);
  const most = Number(compare.dataset.most), box = document.getElementById("answers");
  const distinct = [...new Set(models)], named = compare.querySelector("[name=models]");
  // As the server says without scripts.
  if (!distinct.length || distinct.length > most) {
    named.setCustomValidity(`name 1 to ${most} models, one a line`);
    named.addEventListener("input", () => named.setCustomValidity(""), { once: true });
    return named.reportValidity();
  }
  button.disabled = true;
  box.replaceChildren();
  box.dataset.count = distinct.length;
  await Promise.all(distinct.map((model) => stream(fields, model, panel(box, model))));
  button.disabled = false;
});

function panel(box, model) {
  const made = document.getElementById("panel").content.cloneNode(true).firstElementChild;
  made.querySelector("h3").textContent = model;
  box.append(made);
  return { whole: made, text: made.querySelector(".answer"), note: made.querySelector(".note") };
}

async function stream(fields, model, to) {
  const body = new URLSearchParams(fields), began = performance.now();
  body.set("model", model);
  let first = null, rest = "", whole = false;
  const failed = (why) => { to.whole.classList.add("failed"); to.note.textContent = why; };
  try {
    const answer = await fetch(compare.dataset.stream, { method: "POST", body });
    if (!answer.ok) return failed(await answer.text());
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line.startsWith("data: [DONE]")) { whole = true; continue; }
        const event = JSON.parse(line.slice(6));
        if (event.error) return failed(event.error.message);
        const piece = event.choices?.[0]?.delta?.content;
        if (!piece) continue;
        first ??= performance.now() - began;
        to.text.append(piece);
      }
    }
    if (!whole) return failed("the answer was cut off; ask again");
    const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
    to.note.textContent = first === null ? "The answer is empty."
      : `first token after ${seconds(first)}, whole after ${seconds(performance.now() - began)}`;
  } catch (error) {
    failed(`the connection ended: ${error.message}`);
  }
}
