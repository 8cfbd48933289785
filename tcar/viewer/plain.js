// What stands in for anywidget's model in a file of its own.

class PlainModel {
  constructor(state) {
    this.state = { frame: 0, theme: "auto", ...state };
    this.calls = new Map();
  }

  get(name) { return this.state[name]; }

  set(name, value) {
    if (this.state[name] === value) return;
    this.state[name] = value;
    for (const call of this.calls.get(`change:${name}`) ?? []) call();
  }

  on(event, call) { this.calls.set(event, [...(this.calls.get(event) ?? []), call]); }

  off(event, call) { this.calls.set(event, (this.calls.get(event) ?? []).filter((one) => one !== call)); }

  save_changes() {}
}

function stored(id) { return JSON.parse(document.getElementById(id).textContent); }

// Keys reach the clip though nothing has been clicked yet.
function forwardKeys(target) {
  document.addEventListener("keydown", (event) => {
    if (event.target !== document.body || !target()) return;
    const { key, shiftKey, ctrlKey, metaKey, altKey } = event;
    const sent = new KeyboardEvent("keydown", { key, shiftKey, ctrlKey, metaKey, altKey, cancelable: true });
    if (!target().dispatchEvent(sent)) event.preventDefault();
  });
}

async function showPage() {
  const el = document.getElementById("view");
  const model = new PlainModel({ contents: stored("contents") });
  model.on("change:theme", () => { document.documentElement.dataset.theme = model.get("theme"); });
  forwardKeys(() => el.querySelector(".tcar-viewer"));
  await render({ model, el });
  document.documentElement.dataset.ready = Math.round(performance.now());
}
