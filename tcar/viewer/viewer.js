// One clip or two in step, the answers of a model, and what explains them. Reads what tcar/viewer/packing.py packs.
// Everything that contents say goes into the page as text, never as markup.

const WARM = [[255, 209, 102], [247, 127, 0], [208, 0, 64]];
const COLD = [[142, 202, 230], [33, 120, 181], [18, 53, 130]];
const ROLES = ["#4fd1c5", "#f6c945", "#c9a0ff", "#9be15d", "#ff9ecb", "#7fb8ff", "#ffb07c", "#d7d7d7"];
const DECISIVE = "decisive";
const THEMES = ["auto", "light", "dark"];
const SLOW = 8; // frames a second where the length of a clip is not known
const ICONS = {
  play: "M7 4.5v15l12-7.5z",
  pause: "M7 5h3.5v14H7zM13.5 5H17v14h-3.5z",
  back: "M15.5 5.5 8 12l7.5 6.5z",
  forth: "M8.5 5.5 16 12l-7.5 6.5z",
  auto: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zm0 2v14a7 7 0 0 1 0-14z",
  light: "M12 7a5 5 0 1 0 0 10 5 5 0 0 0 0-10zM11 1h2v4h-2zM11 19h2v4h-2zM1 11h4v2H1zM19 11h4v2h-4z",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
};

// ---- elements

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

function icon(name) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawn.setAttribute("viewBox", "0 0 24 24");
  drawn.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  drawn.append(path);
  return drawn;
}

function iconButton(name, label, onclick) {
  const button = make("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick });
  button.append(icon(name));
  return button;
}

function relabel(button, name, label) {
  button.replaceChildren(icon(name));
  button.setAttribute("aria-label", label);
  button.title = label;
}

// A select that keeps its choice where the new options still have it; returns the choice.
function offer(select, options, wanted) {
  const told = JSON.stringify(options);
  if (select.dataset.told !== told) {
    select.dataset.told = told;
    select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  }
  const values = options.map(([value]) => String(value));
  select.value = values.includes(String(wanted)) ? wanted : values[0] ?? "";
  return select.value;
}

function short(value) {
  if (!value) return "0";
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e4 ? String(Number(value.toPrecision(2))) : value.toExponential(1);
}

const total = (numbers) => numbers.reduce((sum, one) => sum + one, 0);
const cellsOf = (grid) => grid[0] * grid[1] * grid[2];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

// ---- packed numbers

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function picture(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

async function readMap(packed) {
  const levels = new Int8Array((await inflate(packed.values)).buffer);
  return { ...packed, grid: packed.shape, values: Float32Array.from(levels, (level) => (level / 127) * packed.scale) };
}

async function readAttention(packed) {
  const [heads, readers, keys] = packed.shape;
  const levels = await inflate(packed.values);
  const weights = new Float32Array(heads * readers * keys);
  const weight = (at) => (levels[at] / packed.levels) ** 2 * packed.scale;
  if (packed.kept) {
    const keep = new Uint16Array((await inflate(packed.keep)).buffer);
    keep.forEach((key, at) => { weights[Math.floor(at / packed.kept) * keys + key] = weight(at); });
  } else weights.forEach((_, at) => { weights[at] = weight(at); });
  return { ...packed, weights };
}

async function readWindow(packed, readers, keys) {
  if (packed === null) return null;
  const bits = await inflate(packed);
  return (reader, key) => {
    const bit = reader * keys + key;
    return (bits[bit >> 3] >> (7 - (bit & 7))) & 1;
  };
}

// Outlines frame by frame, where 0 says: as in the frame before.
async function readMasks(packed) {
  const told = {};
  for (const [name, lines] of Object.entries(JSON.parse(new TextDecoder().decode(await inflate(packed))))) {
    told[name] = [];
    for (const line of lines) told[name].push(line === 0 ? told[name].at(-1) : line);
  }
  return told;
}

async function readClip(packed) {
  const [sheet, masks, maps, attention] = await Promise.all([
    picture(packed.sprite.picture),
    readMasks(packed.masks),
    Promise.all(packed.maps.map(readMap)),
    Promise.all(Object.entries(packed.attention).map(async ([name, one]) => [name, await readAttention(one)])),
  ]);
  return { ...packed, ...packed.sprite, sheet, maps, attention: new Map(attention), masks };
}

async function read(packed) {
  const windows = {};
  for (const [direction, window] of Object.entries(packed.windows)) {
    const [reader, keys] = direction.split("_from_").map((stream) => cellsOf(packed.grids[stream]));
    windows[direction] = await readWindow(window, reader, keys);
  }
  return { ...packed, windows, clips: await Promise.all(packed.clips.map(readClip)) };
}

// Block -> what may be chosen of it: a part that reads and a stream that is read.
function directions(contents) {
  const blocks = new Map();
  for (const [entry, { readers, keys }] of contents.clips[0].attention) {
    const across = entry.includes("_from_");
    const block = across ? entry.slice(0, entry.lastIndexOf(".")) : entry;
    if (!blocks.has(block)) blocks.set(block, []);
    for (const [r, [reader, count]] of readers.entries()) {
      for (const [k, [read]] of keys.entries()) {
        if (!contents.grids[read] || (reader !== "readout" && !contents.grids[reader])) continue;
        const starts = [total(readers.slice(0, r).map(([, n]) => n)), total(keys.slice(0, k).map(([, n]) => n))];
        const window = across ? contents.windows[`${reader}_from_${read}`] ?? null : null;
        blocks.get(block).push({ entry, reader, read, count, starts, window });
      }
    }
  }
  return blocks;
}

// ---- colours of values

function ramp(value) {
  const strength = clamp(Math.abs(value), 0, 1);
  const stops = value < 0 ? COLD : WARM;
  const at = Math.min(Math.floor(strength * 2), 1);
  const share = strength * 2 - at;
  return [...stops[at].map((from, c) => from + share * (stops[at + 1][c] - from)), 255 * strength];
}

function tiles(values, scale, width, height) {
  const canvas = make("canvas", { width, height });
  const image = new ImageData(width, height);
  for (let cell = 0; cell < width * height; cell++) image.data.set(ramp(values[cell] / (scale || 1)), 4 * cell);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

// ---- the view

class View {
  constructor(model, el, contents) {
    Object.assign(this, { model, el, contents });
    this.first = contents.clips[0];
    this.blocks = directions(contents);
    this.frame = clamp(model.get("frame") || 0, 0, this.first.count - 1);
    this.swapped = new Set();
    this.hidden = new Set();
    this.picked = null;
    this.timer = null;
    this.look = this.firstLook();
    this.closing = new AbortController();
    this.build();
    this.follow();
    this.update();
  }

  // What is seen at first: what passed its test before what was not tested; what failed is there to be asked for.
  firstLook() {
    const { maps } = this.first;
    const chosen = maps.find((map) => map.passed) ?? maps.find((map) => map.passed === null);
    const [block] = this.blocks.keys();
    return {
      kind: chosen ? `map:${chosen.method}` : "none", stream: chosen?.stream, opacity: 0.85,
      block, direction: "0", head: "mean", importance: Object.keys(this.first.importance)[0],
    };
  }

  // -- building

  build() {
    const { contents } = this;
    this.root = make("section", {
      class: "tcar-viewer", tabindex: "0", "aria-label": contents.title, "data-lm-suppress-shortcuts": "true",
      onkeydown: (event) => this.press(event),
    });
    this.root.append(
      this.header(),
      make("div", { class: "columns" },
        make("div", { class: "watch" }, this.stage(), this.transport(), this.axis()),
        make("div", { class: "ask" }, this.answers(), this.looking())),
      this.footer());
    this.el.replaceChildren(this.root);
  }

  header() {
    const { contents } = this;
    const line = make("div", { class: "facts" });
    if (contents.group) line.append(make("span", { class: "chip" }, contents.group));
    if (contents.wrong !== null) {
      line.append(make("span", { class: contents.wrong ? "chip wrong" : "chip right" }, contents.wrong ? "wrong" : "right"));
    }
    if (contents.footer.synthetic) line.append(make("span", { class: "chip" }, "synthetic"));
    this.themeButton = iconButton("auto", "Theme: auto", () => this.nextTheme());
    this.themeButton.classList.add("theme");
    return make("header", {}, make("h2", {}, contents.title), line, this.themeButton);
  }

  stage() {
    this.figures = this.contents.clips.map((clip, number) => this.figure(clip, number));
    return make("div", { class: `stage clips-${this.figures.length}` }, ...this.figures.map(({ outer }) => outer));
  }

  figure(clip, number) {
    const canvas = make("canvas", {
      role: "img", "aria-label": `${clip.name}${clip.label ? `: ${clip.label}` : ""}`,
      onclick: (event) => this.pickAt(number, event), onpointermove: (event) => this.probe(number, event),
      onpointerleave: () => { this.valueHere.textContent = ""; },
    });
    canvas.style.aspectRatio = `${clip.width} / ${clip.height}`;
    const stamp = make("div", { class: "stamp", hidden: true }, "not of the model");
    const given = make("span", { class: "given" });
    const caption = make("figcaption", {},
      make("strong", {}, clip.name), clip.label ? ` ${clip.label}` : "", given);
    return { clip, canvas, stamp, given, outer: make("figure", {}, make("div", { class: "screen" }, canvas, stamp), caption) };
  }

  transport() {
    this.playButton = iconButton("play", "Play", () => this.toggle());
    this.playButton.classList.add("play");
    this.where = make("output", { class: "where" });
    return make("div", { class: "transport", role: "group", "aria-label": "Playing" },
      iconButton("back", "One frame back", () => this.step(-1)),
      this.playButton,
      iconButton("forth", "One frame on", () => this.step(1)),
      this.where);
  }

  axis() {
    this.plot = make("canvas", { "aria-hidden": "true" });
    const drag = (event) => this.scrub(event);
    this.slider = make("div", {
      class: "axis", role: "slider", tabindex: "0", "aria-label": "Time", "aria-valuemin": 1, "aria-valuemax": this.first.count,
      onpointerdown: (event) => { this.slider.setPointerCapture(event.pointerId); this.pause(); drag(event); },
      onpointermove: (event) => { if (event.buttons & 1) drag(event); },
      onpointerup: () => this.share(),
    }, this.plot);
    return this.slider;
  }

  answers() {
    const { contents } = this;
    const names = [...new Set(Object.values(contents.answers).flat().map(([text]) => text))];
    this.rows = names.map((text) => this.answerRow(text));
    this.source = make("p", { class: "source", "aria-live": "polite" });
    this.swaps = contents.clips.length < 2 ? [] : contents.streams
      .map((stream, number) => this.swapButton(stream, number))
      .filter(({ stream }) => contents.answers[stream] || contents.answers.both);
    if (!names.length) return null;
    return make("section", { class: "panel answers", "aria-label": "Answers" },
      make("h3", {}, "What the model answers"),
      this.swaps.length ? make("div", { class: "swaps", role: "group", "aria-label": "Swap streams" },
        ...this.swaps.map(({ button }) => button)) : null,
      this.source,
      make("div", { class: "rows" }, ...this.rows.map(({ row }) => row)));
  }

  answerRow(text) {
    const { target, against } = this.contents;
    const role = text === target ? "target" : text === against ? "against" : "";
    const bar = make("div", { class: "bar" });
    const before = make("div", { class: "before", title: "without a swap" });
    const number = make("span", { class: "number" });
    const row = make("div", { class: `row ${role}` },
      make("span", { class: "name" }, text, role ? make("em", {}, role) : ""), number,
      make("div", { class: "track" }, bar, before));
    return { text, row, bar, before, number };
  }

  swapButton(stream, number) {
    const button = make("button", {
      type: "button", class: `swap ${stream}`, "aria-pressed": "false", title: `${number + 1} or ${stream[0]}`,
      onclick: () => this.swap(stream),
    }, `Swap ${stream}`);
    return { stream, button };
  }

  looking() {
    const select = (label, change) => {
      const made = make("select", { onchange: () => { change(made.value); this.update(); } });
      return { made, outer: make("label", {}, make("span", {}, label), made) };
    };
    const keep = (name) => (value) => { this.look[name] = value; };
    this.choose = {
      kind: select("Look at", keep("kind")),
      stream: select("Stream", keep("stream")),
      block: select("Block", (value) => { this.look.block = value; this.look.direction = "0"; this.picked = null; }),
      head: select("Head", keep("head")),
      direction: select("Direction", (value) => { this.look.direction = value; this.picked = null; }),
      importance: select("Moments by", keep("importance")),
    };
    this.opacity = make("input", {
      type: "range", min: 0, max: 1, step: 0.05, value: this.look.opacity,
      oninput: () => { this.look.opacity = Number(this.opacity.value); this.update(); },
    });
    this.opacityLine = make("label", {}, make("span", {}, "Opacity"), this.opacity);
    this.note = make("p", { class: "note" });
    this.told = make("p", { class: "told", "aria-live": "polite" });
    this.panel = make("section", { class: "panel looking", "aria-label": "What is drawn" },
      make("h3", {}, "What is drawn on it"),
      make("div", { class: "choices" }, ...Object.values(this.choose).map(({ outer }) => outer), this.opacityLine),
      this.scale(), this.note, this.told, this.outlines());
    return this.panel;
  }

  scale() {
    this.gradient = make("canvas", { width: 128, height: 1, role: "img", "aria-label": "Colour scale" });
    this.ends = [make("span"), make("span"), make("span")];
    this.valueHere = make("span", { class: "here" });
    this.unit = make("span", { class: "unit" });
    this.legend = make("div", { class: "legend" },
      make("div", { class: "gradient" }, this.gradient), make("div", { class: "ends" }, ...this.ends),
      make("div", { class: "unit-line" }, this.unit, this.valueHere));
    return this.legend;
  }

  outlines() {
    const names = [...new Set(this.contents.clips.flatMap(({ masks }) => Object.keys(masks)))];
    const roles = names.filter((name) => name !== DECISIVE);
    this.colours = new Map(roles.map((name, number) => [name, ROLES[number % ROLES.length]]));
    if (names.includes(DECISIVE)) this.colours.set(DECISIVE, "#ffffff");
    if (!names.length) return null;
    const group = make("div", { class: "outlines", role: "group", "aria-label": "Outlines" });
    for (const [name, colour] of this.colours) group.append(this.outlineButton(name, colour));
    return group;
  }

  outlineButton(name, colour) {
    const swatch = make("i", { class: name === DECISIVE ? "decisive" : "" });
    swatch.style.setProperty("--swatch", colour);
    const button = make("button", {
      type: "button", class: "outline", "aria-pressed": "true",
      onclick: () => {
        if (!this.hidden.delete(name)) this.hidden.add(name);
        button.setAttribute("aria-pressed", String(!this.hidden.has(name)));
        this.update();
      },
    }, swatch, name === DECISIVE ? "decisive place" : name);
    return button;
  }

  footer() {
    const { commit, parameters, synthetic, remarks } = this.contents.footer;
    const footer = make("footer", {}, make("span", {}, "commit ", make("code", {}, commit)));
    if (synthetic) footer.append(make("span", {}, "Synthetic: rendered clips, not the real dataset."));
    const entries = Object.entries(parameters);
    if (entries.length) {
      footer.append(make("details", {}, make("summary", {}, `${entries.length} parameters`),
        make("dl", {}, ...entries.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]))));
    }
    if (remarks.length) footer.append(make("ul", {}, ...remarks.map((remark) => make("li", {}, remark))));
    return footer;
  }

  follow() {
    const { signal } = this.closing;
    this.watching = new ResizeObserver(() => this.update());
    this.watching.observe(this.root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.update(), { signal });
    this.listen = {
      "change:frame": () => { if (this.model.get("frame") !== this.frame) this.go(this.model.get("frame")); },
      "change:theme": () => this.update(),
    };
    for (const [event, call] of Object.entries(this.listen)) this.model.on(event, call);
  }

  close() {
    this.pause();
    this.closing.abort();
    this.watching.disconnect();
    cancelAnimationFrame(this.pending);
    for (const [event, call] of Object.entries(this.listen)) this.model.off(event, call);
    this.root.remove();
  }

  // -- time

  get position() { return (this.frame + 0.5) / this.first.count; }

  frameOf(clip) { return clamp(Math.floor(this.position * clip.count), 0, clip.count - 1); }

  go(frame) {
    this.frame = clamp(frame, 0, this.first.count - 1);
    this.model.set("frame", this.frame);
    this.update();
  }

  // While it plays nothing is sent: a kernel has no need of every frame.
  share() { this.model.save_changes(); }

  step(by) {
    this.pause();
    this.go(this.frame + by);
    this.share();
  }

  scrub(event) {
    const box = this.slider.getBoundingClientRect();
    this.go(Math.floor(((event.clientX - box.left) / box.width) * this.first.count));
  }

  toggle() { if (this.timer === null) this.play(); else { this.pause(); this.share(); } }

  play() {
    const { count, seconds } = this.first;
    const each = seconds ? (1000 * seconds) / count : 1000 / SLOW;
    let shown = performance.now();
    const tick = (now) => {
      const passed = Math.floor((now - shown) / each);
      if (passed > 0) {
        shown += passed * each;
        this.go((this.frame + passed) % count);
      }
      this.timer = requestAnimationFrame(tick);
    };
    this.timer = requestAnimationFrame(tick);
    relabel(this.playButton, "pause", "Pause");
  }

  pause() {
    if (this.timer === null) return;
    cancelAnimationFrame(this.timer);
    this.timer = null;
    relabel(this.playButton, "play", "Play");
  }

  // -- keys

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("select, input, summary")) return;
    if (event.key === " " && event.target.closest("button")) return;
    const act = this.action(event);
    if (!act) return;
    event.preventDefault();
    event.stopPropagation();
    act();
  }

  action({ key, shiftKey }) {
    const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (shiftKey && moves[key]) return () => this.movePick(...moves[key]);
    const [first, second] = this.contents.streams;
    const named = this.contents.streams.find((stream) => stream[0] === key);
    return {
      " ": () => this.toggle(),
      ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1),
      Home: () => this.step(-Infinity), End: () => this.step(Infinity),
      1: () => this.swap(first), 2: () => this.swap(second),
      Escape: this.picked ? () => { this.picked = null; this.update(); } : undefined,
    }[key] ?? (named && (() => this.swap(named)));
  }

  nextTheme() {
    this.model.set("theme", THEMES[(THEMES.indexOf(this.model.get("theme") || "auto") + 1) % THEMES.length]);
    this.share();
    this.update();
  }

  // -- swapping

  swap(stream) {
    if (!this.swaps.some((one) => one.stream === stream)) return;
    if (!this.swapped.delete(stream)) this.swapped.add(stream);
    this.update();
  }

  get swapState() {
    const both = this.contents.streams.length === this.swapped.size && this.swapped.size > 1;
    return both ? "both" : [...this.swapped][0] ?? "neither";
  }

  // -- attention

  get direction() {
    const offered = this.blocks.get(this.look.block) ?? [];
    return this.look.kind === "attention" ? offered[Number(this.look.direction)] ?? offered[0] : null;
  }

  // What a click selects a token of: the direction shown, or where none is, the first across the streams.
  pickable() {
    if (this.direction && this.direction.reader !== "readout") return this.direction;
    const offered = [...this.blocks].flatMap(([block, all]) => all.map((one, number) => ({ block, number, ...one })));
    const here = offered.filter(({ block }) => this.direction && block === this.look.block);
    const chosen = [...here, ...offered].find(({ reader }) => reader !== "readout");
    if (!chosen) return this.windowAlone();
    Object.assign(this.look, { kind: "attention", block: chosen.block, direction: String(chosen.number) });
    return this.direction;
  }

  windowAlone() {
    const [direction] = Object.keys(this.contents.windows);
    if (!direction) return null;
    const [reader, read] = direction.split("_from_");
    return { reader, read, window: this.contents.windows[direction] };
  }

  pickAt(number, event) {
    const box = this.figures[number].canvas.getBoundingClientRect();
    this.pick((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    this.root.focus({ preventScroll: true });
  }

  pick(x, y) {
    const direction = this.pickable();
    if (!direction) return;
    const [t, rows, columns] = this.contents.grids[direction.reader];
    const at = [[this.position, t], [y, rows], [x, columns]].map(([share, n]) => clamp(Math.floor(share * n), 0, n - 1));
    this.picked = { at, index: (at[0] * rows + at[1]) * columns + at[2], direction };
    this.update();
  }

  movePick(down, right) {
    const direction = this.picked?.direction ?? this.pickable();
    if (!direction) return;
    const [, rows, columns] = this.contents.grids[direction.reader];
    const [, row, column] = this.picked?.at ?? [0, (rows - 1) >> 1, (columns - 1) >> 1];
    this.pick((clamp(column + right, 0, columns - 1) + 0.5) / columns, (clamp(row + down, 0, rows - 1) + 0.5) / rows);
  }

  // The weights over the read stream: of the readout, of the picked token, or the mean over all that read.
  weights(clip) {
    const { entry, reader, read, count, starts } = this.direction;
    const block = clip.attention.get(entry);
    if (!block) return null;
    const [heads, readers, keys] = block.shape;
    const chosen = this.look.head === "mean" ? [...Array(heads).keys()] : [Number(this.look.head)];
    const rows = this.picked && reader !== "readout" ? [this.picked.index] : [...Array(count).keys()];
    const grid = this.contents.grids[read];
    const values = new Float32Array(cellsOf(grid));
    for (const head of chosen) {
      for (const row of rows) {
        const from = (head * readers + starts[0] + row) * keys + starts[1];
        for (let key = 0; key < values.length; key++) values[key] += block.weights[from + key];
      }
    }
    return { grid, values: values.map((sum) => sum / (chosen.length * rows.length)), signed: false };
  }

  // What is painted over each clip, on one scale for both.
  layers() {
    const { kind, stream } = this.look;
    const method = kind.startsWith("map:") ? kind.slice(4) : null;
    const found = this.contents.clips.map((clip) => {
      if (kind === "attention") return this.weights(clip);
      return clip.maps.find((map) => map.method === method && map.stream === stream) ?? null;
    });
    const largest = Math.max(0, ...found.map((layer) => layer ? layer.values.reduce((m, v) => Math.max(m, Math.abs(v)), 0) : 0));
    return found.map((layer) => layer && { ...layer, scale: largest });
  }

  // -- drawing

  update() {
    if (this.pending) return;
    this.pending = requestAnimationFrame(() => {
      this.pending = 0;
      this.draw();
      this.root.dataset.ready = "";
    });
  }

  draw() {
    this.drawTheme();
    this.drawChoices();
    const layers = this.layers();
    this.figures.forEach((figure, number) => this.drawFigure(figure, layers[number]));
    this.drawLegend(layers.find(Boolean));
    this.drawAxis(layers);
    this.drawAnswers();
    this.drawTold(layers);
  }

  drawTheme() {
    const theme = this.model.get("theme") || "auto";
    if (this.root.dataset.theme !== theme) relabel(this.themeButton, theme, `Theme: ${theme}`);
    this.root.dataset.theme = theme;
  }

  drawChoices() {
    const { look, choose, first } = this;
    const methods = [...new Set(first.maps.map(({ method }) => method))];
    const kinds = [["none", "the frames alone"], ...methods.map((method) => [`map:${method}`, this.methodName(method)])];
    if (this.blocks.size) kinds.push(["attention", "attention"]);
    look.kind = offer(choose.kind.made, kinds, look.kind);
    const maps = first.maps.filter(({ method }) => look.kind === `map:${method}`);
    if (maps.length) look.stream = offer(choose.stream.made, maps.map(({ stream }) => [stream, stream]), look.stream);
    const attention = look.kind === "attention";
    if (attention) this.drawAttentionChoices();
    const moments = Object.keys(first.importance);
    if (moments.length) look.importance = offer(choose.importance.made, moments.map((name) => [name, name]), look.importance);
    choose.kind.outer.hidden = kinds.length < 2;
    this.panel.hidden = kinds.length < 2 && !moments.length && !this.colours.size;
    choose.stream.outer.hidden = !maps.length;
    for (const name of ["block", "direction", "head"]) choose[name].outer.hidden = !attention;
    choose.importance.outer.hidden = !moments.length;
    this.opacityLine.hidden = look.kind === "none";
  }

  drawAttentionChoices() {
    const { look, choose } = this;
    look.block = offer(choose.block.made, [...this.blocks.keys()].map((name) => [name, name]), look.block);
    const offered = this.blocks.get(look.block).map(({ reader, read }, number) => [String(number), `${reader} reads ${read}`]);
    look.direction = offer(choose.direction.made, offered, look.direction);
    const { heads, shape } = this.first.attention.get(this.direction.entry);
    const single = [...Array(shape[0]).keys()].map((head) => [String(head), `head ${head}`]);
    look.head = offer(choose.head.made, [["mean", `mean of ${heads}`], ...(shape[0] > 1 ? single : [])], look.head);
  }

  methodName(method) {
    const verdicts = this.first.maps.filter((map) => map.method === method).map(({ passed }) => passed);
    if (verdicts.includes(false)) return `${method} (not of the model)`;
    return verdicts.includes(null) ? `${method} (not tested)` : `${method} (passed)`;
  }

  drawFigure({ clip, canvas, stamp, given }, layer) {
    const pen = this.fit(canvas, clip.height / clip.width);
    const frame = this.frameOf(clip);
    const [column, row] = [frame % clip.columns, Math.floor(frame / clip.columns)];
    const { width, height } = canvas;
    pen.imageSmoothingQuality = "high";
    pen.drawImage(clip.sheet, column * clip.width, row * clip.height, clip.width, clip.height, 0, 0, width, height);
    if (layer) this.drawLayer(pen, layer);
    for (const [name, colour] of this.colours) {
      if (clip.masks[name] && !this.hidden.has(name)) this.drawOutline(pen, clip, clip.masks[name][frame], colour, name === DECISIVE);
    }
    if (this.picked) this.drawPicked(pen);
    stamp.hidden = !layer || layer.passed !== false;
    this.drawGiven(clip, given);
  }

  // The streams that the model takes from a clip, written beside its name.
  drawGiven(clip, given) {
    const mine = clip === this.first;
    const streams = this.contents.clips.length < 2 ? [] : this.contents.streams
      .filter((stream) => this.swapped.has(stream) !== mine);
    if (given.dataset.told === streams.join()) return;
    given.dataset.told = streams.join();
    given.replaceChildren(...streams.map((stream) => make("i", { class: `dot ${stream}` }, stream)));
  }

  fit(canvas, ratio) {
    const dense = Math.min(devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(canvas.clientWidth * dense));
    const height = Math.max(1, Math.round(ratio ? width * ratio : canvas.clientHeight * dense));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    pen.lineJoin = "round";
    return pen;
  }

  drawLayer(pen, { grid: [t, rows, columns], values, scale }) {
    const moment = clamp(Math.floor(this.position * t), 0, t - 1);
    const cells = values.subarray(moment * rows * columns, (moment + 1) * rows * columns);
    pen.globalAlpha = this.look.opacity;
    pen.imageSmoothingEnabled = false;
    pen.drawImage(tiles(cells, scale, columns, rows), 0, 0, pen.canvas.width, pen.canvas.height);
    pen.imageSmoothingEnabled = true;
    pen.globalAlpha = 1;
  }

  drawOutline(pen, clip, polygons, colour, dashed) {
    const scale = pen.canvas.width / clip.width;
    const path = new Path2D();
    for (const points of polygons) {
      for (let at = 0; at < points.length; at += 2) path[at ? "lineTo" : "moveTo"]((points[at] + 0.5) * scale, (points[at + 1] + 0.5) * scale);
      path.closePath();
    }
    this.stroke(pen, path, colour, dashed ? [5, 4] : []);
  }

  // Each line has a dark edge: pictures are of any colour.
  stroke(pen, path, colour, dash = [], width = 1.6) {
    const dense = Math.min(devicePixelRatio || 1, 2);
    pen.setLineDash([]);
    pen.strokeStyle = "rgba(0, 0, 0, 0.45)";
    pen.lineWidth = (width + 1.6) * dense;
    pen.stroke(path);
    pen.setLineDash(dash.map((length) => length * dense));
    pen.strokeStyle = colour;
    pen.lineWidth = width * dense;
    pen.stroke(path);
    pen.setLineDash([]);
  }

  // The reading token, dashed in frames at which it is not, and the border of what it may read in this frame.
  drawPicked(pen) {
    const { at, direction } = this.picked;
    const { width, height } = pen.canvas;
    const [t, rows, columns] = this.contents.grids[direction.reader];
    const cell = new Path2D();
    const inset = 5; // so that the border of a window of one place is seen around it
    cell.rect(
      (at[2] * width) / columns + inset, (at[1] * height) / rows + inset, width / columns - 2 * inset, height / rows - 2 * inset);
    const now = clamp(Math.floor(this.position * t), 0, t - 1) === at[0];
    this.stroke(pen, this.windowBorder(pen), "#ffffff", [2, 3], 1.4);
    this.stroke(pen, cell, direction.reader === "motion" ? "#ff8f4d" : "#5cc4ff", now ? [] : [4, 4], 2.4);
  }

  windowBorder(pen) {
    const { width, height } = pen.canvas;
    const { read } = this.picked.direction;
    const [t, rows, columns] = this.contents.grids[read];
    const moment = clamp(Math.floor(this.position * t), 0, t - 1);
    const open = (y, x) => y >= 0 && x >= 0 && y < rows && x < columns && this.mayRead((moment * rows + y) * columns + x);
    const path = new Path2D();
    const line = (x, y, right, down) => {
      path.moveTo((x * width) / columns, (y * height) / rows);
      path.lineTo(((x + right) * width) / columns, ((y + down) * height) / rows);
    };
    for (let y = 0; y <= rows; y++) {
      for (let x = 0; x <= columns; x++) {
        if (open(y, x) !== open(y - 1, x)) line(x, y, 1, 0);
        if (open(y, x) !== open(y, x - 1)) line(x, y, 0, 1);
      }
    }
    return path;
  }

  mayRead(key) {
    const { window } = this.picked.direction;
    return window === null || Boolean(window(this.picked.index, key));
  }

  drawLegend(layer) {
    this.legend.hidden = !layer;
    const map = layer?.method ? layer : null;
    this.note.textContent = map ? [this.verdict(map.passed), map.note].filter(Boolean).join(" ") : "";
    this.note.hidden = !this.note.textContent;
    this.note.classList.toggle("failed", map?.passed === false);
    if (!layer) return;
    const low = layer.signed ? -1 : 0;
    const values = Array.from({ length: 128 }, (_, at) => low + ((1 - low) * at) / 127);
    const pen = this.gradient.getContext("2d");
    pen.clearRect(0, 0, 128, 1);
    pen.drawImage(tiles(values, 1, 128, 1), 0, 0);
    this.gradient.style.opacity = this.look.opacity;
    const marks = layer.signed ? [`−${short(layer.scale)}`, "0", `+${short(layer.scale)}`] : ["0", short(layer.scale / 2), short(layer.scale)];
    marks.forEach((mark, number) => { this.ends[number].textContent = mark; });
    this.unit.textContent = map ? `${map.method}, ${map.stream} stream` : "share of the attention";
  }

  verdict(passed) {
    if (passed === false) return "Failed its test: the picture is not of the model.";
    return passed ? "Passed its test." : "Not tested.";
  }

  // The value under the pointer, beside the scale.
  probe(number, event) {
    const layer = this.layers()[number];
    if (!layer) return;
    const box = this.figures[number].canvas.getBoundingClientRect();
    const [t, rows, columns] = layer.grid;
    const shares = [this.position, (event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    const [moment, row, column] = shares.map((share, axis) => clamp(Math.floor(share * layer.grid[axis]), 0, layer.grid[axis] - 1));
    this.valueHere.textContent = `here ${short(layer.values[(moment * rows + row) * columns + column])}`;
  }

  drawAnswers() {
    const { contents, swapState } = this;
    const now = new Map(contents.answers[swapState] ?? []);
    const before = new Map(contents.answers.neither);
    const best = Math.max(...now.values());
    for (const { text, row, bar, before: mark, number } of this.rows) {
      const probability = now.get(text);
      bar.style.width = `${100 * (probability ?? 0)}%`;
      number.textContent = probability === undefined ? "–" : probability.toFixed(2);
      mark.hidden = swapState === "neither" || !before.has(text);
      mark.style.left = `${100 * (before.get(text) ?? 0)}%`;
      row.classList.toggle("best", probability === best);
    }
    for (const { stream, button } of this.swaps) button.setAttribute("aria-pressed", String(this.swapped.has(stream)));
    this.drawSource(swapState);
  }

  drawSource(swapState) {
    const { clips, streams, answers } = this.contents;
    let told = "";
    if (clips.length > 1) {
      told = streams.map((stream) => `${stream} from ${clips[this.swapped.has(stream) ? 1 : 0].name}`).join(", ");
      told = answers[swapState] ? `${told[0].toUpperCase()}${told.slice(1)}.` : `Not measured: ${told}.`;
    }
    if (this.source.textContent !== told) this.source.textContent = told;
    this.source.hidden = !told;
  }

  drawTold(layers) {
    let told = this.blocks.size || Object.keys(this.contents.windows).length
      ? "Click a place in a clip to see what its token may read." : "";
    if (this.picked) {
      const { at, direction } = this.picked;
      const cells = cellsOf(this.contents.grids[direction.read]);
      const open = Array.from({ length: cells }, (_, key) => this.mayRead(key)).filter(Boolean).length;
      told = `The ${direction.reader} token of moment ${at[0] + 1}, row ${at[1] + 1}, column ${at[2] + 1} may read `
        + `${open} of ${cells} ${direction.read} tokens (dotted).`;
      if (this.direction && layers[0]) told += ` It gives the strongest ${short(Math.max(...layers[0].values))}.`;
    } else if (this.direction) {
      told = this.direction.reader === "readout" ? `What the readout reads. ${told}` : `The mean over all ${this.direction.reader} tokens. ${told}`;
    }
    if (this.told.textContent !== told) this.told.textContent = told;
    this.told.hidden = !told;
  }

  // -- the time axis

  lanes(layers) {
    const { clips } = this.contents;
    const several = clips.length > 1;
    const of = (clip, what) => several ? `${what}, ${clip.name}` : what;
    const lanes = clips.filter(({ events, moment }) => events.length || moment !== null)
      .map((clip) => ({ kind: "events", label: of(clip, "events"), height: 18, clip }));
    const lines = clips.filter(({ probability }) => probability).map(({ probability }) => probability);
    if (lines.length) lanes.push({ kind: "lines", label: "probability of the target as the clip grows", height: 44, lines });
    for (const clip of clips) {
      const series = clip.importance[this.look.importance];
      if (series) lanes.push({ kind: "bars", label: of(clip, `importance, ${this.look.importance}`), height: 36, series });
    }
    if (this.direction) {
      layers.forEach((layer, number) => {
        if (layer) lanes.push({ kind: "bars", label: of(clips[number], "attention by moment"), height: 36, series: this.inTime(layer) });
      });
    }
    return lanes;
  }

  inTime({ grid: [t, rows, columns], values }) {
    const each = rows * columns;
    const sums = Array.from({ length: t }, (_, moment) => total([...values.subarray(moment * each, (moment + 1) * each)]));
    return [sums.map((_, moment) => (moment + 0.5) / t), sums];
  }

  ink(name) {
    this.tint ??= this.root.appendChild(make("i", { class: "tint", hidden: true }));
    this.tint.style.color = `var(--${name})`;
    return getComputedStyle(this.tint).color;
  }

  drawAxis(layers) {
    const lanes = this.lanes(layers);
    const label = 15;
    const tall = total(lanes.map(({ height }) => height + label + 6)) + 26;
    this.plot.style.height = `${tall}px`;
    const pen = this.fit(this.plot);
    const dense = Math.min(devicePixelRatio || 1, 2);
    pen.scale(dense, dense);
    const width = this.plot.clientWidth;
    const look = { width, ink: this.ink("ink"), quiet: this.ink("quiet"), line: this.ink("line"), paper: this.ink("paper"), accent: this.ink("accent"), cold: this.ink("cold") };
    pen.font = `11px ${getComputedStyle(this.root).fontFamily}`;
    let top = lanes.length ? 2 : 8; // room for the knob of the cursor
    for (const lane of lanes) {
      this[`lane_${lane.kind}`](pen, lane, top + label, look);
      lane.top = top;
      top += lane.height + label + 6;
    }
    this.drawTicks(pen, top, look);
    this.drawCursor(pen, top, look);
    for (const lane of lanes) this.drawLabel(pen, lane, look);
    this.tellFrame();
  }

  // Above the cursor, which ends at the letters.
  drawLabel(pen, { label, top }, { width, quiet, paper }) {
    pen.textAlign = "left";
    pen.strokeStyle = paper;
    pen.lineWidth = 4;
    pen.strokeText(label, 1, top + 10, width - 80);
    pen.fillStyle = quiet;
    pen.fillText(label, 1, top + 10, width - 80);
  }

  lane_events(pen, { clip, height }, top, { width, ink, accent }) {
    for (const [name, start, end] of clip.events) {
      const [left, wide] = [start * width, Math.max(2, (end - start) * width)];
      pen.globalAlpha = 0.22;
      pen.fillStyle = accent;
      pen.beginPath();
      pen.roundRect(left, top, wide, height, 4);
      pen.fill();
      pen.globalAlpha = 1;
      pen.fillStyle = ink;
      if (wide > 30) pen.fillText(name, left + 6, top + height - 5, wide - 10);
    }
    if (clip.moment === null) return;
    const at = clip.moment * width;
    pen.fillStyle = accent;
    pen.beginPath();
    pen.moveTo(at, top + height);
    pen.lineTo(at - 5, top + height + 6);
    pen.lineTo(at + 5, top + height + 6);
    pen.fill();
    pen.fillRect(at - 0.75, top, 1.5, height);
  }

  lane_lines(pen, { lines, height }, top, { width, quiet, line, accent }) {
    pen.strokeStyle = line;
    pen.lineWidth = 1;
    for (const level of [0, 1]) this.rule(pen, top + height * (1 - level), width);
    this.range(pen, "1", "0", top, height, width, quiet);
    lines.forEach(([times, values], number) => {
      pen.strokeStyle = accent;
      pen.lineWidth = 2;
      pen.globalAlpha = number ? 0.6 : 1;
      pen.setLineDash(number ? [4, 3] : []);
      pen.beginPath();
      times.forEach((time, at) => pen[at ? "lineTo" : "moveTo"](time * width, top + height * (1 - values[at])));
      pen.stroke();
    });
    pen.globalAlpha = 1;
    pen.setLineDash([]);
  }

  lane_bars(pen, { series: [times, values], height }, top, { width, quiet, line, accent, cold }) {
    const [low, high] = [Math.min(0, ...values), Math.max(0, ...values)];
    const spread = high - low || 1;
    const level = (value) => top + (height * (high - value)) / spread;
    const gap = Math.min(...times.slice(1).map((time, at) => time - times[at]), 1 / times.length);
    const wide = clamp(gap * width * 0.72, 1, 40);
    times.forEach((time, at) => {
      pen.fillStyle = values[at] < 0 ? cold : accent;
      pen.globalAlpha = 0.75;
      pen.fillRect(time * width - wide / 2, Math.min(level(values[at]), level(0)), wide, Math.abs(level(values[at]) - level(0)));
    });
    pen.globalAlpha = 1;
    pen.strokeStyle = line;
    pen.lineWidth = 1;
    this.rule(pen, level(0), width);
    this.range(pen, short(high), short(low), top, height, width, quiet);
  }

  rule(pen, y, width) {
    pen.beginPath();
    pen.moveTo(0, Math.round(y) + 0.5);
    pen.lineTo(width, Math.round(y) + 0.5);
    pen.stroke();
  }

  range(pen, high, low, top, height, width, quiet) {
    pen.fillStyle = quiet;
    pen.textAlign = "right";
    pen.fillText(`${low} to ${high}`, width - 1, top - 5);
  }

  drawTicks(pen, top, { width, quiet, line }) {
    const { seconds } = this.first;
    pen.strokeStyle = line;
    this.rule(pen, top, width);
    pen.fillStyle = quiet;
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      pen.textAlign = share === 0 ? "left" : share === 1 ? "right" : "center";
      pen.fillText(seconds ? `${short(share * seconds)} s` : String(share), share * width, top + 14);
    }
  }

  drawCursor(pen, bottom, { width, ink }) {
    const at = this.position * width;
    pen.fillStyle = ink;
    pen.fillRect(at - 0.75, 0, 1.5, bottom);
    pen.beginPath();
    pen.arc(at, bottom, 4.5, 0, 2 * Math.PI);
    pen.fill();
  }

  tellFrame() {
    const { count, seconds, events, probability } = this.first;
    const now = events.filter(([, start, end]) => start <= this.position && this.position <= end).map(([name]) => name);
    const parts = [`frame ${this.frame + 1} of ${count}`];
    if (seconds) parts.push(`${(this.position * seconds).toFixed(2)} s`);
    if (now.length) parts.push(now.join(", "));
    if (probability) {
      const seen = probability[0].findLastIndex((time) => time <= this.position);
      if (seen >= 0) parts.push(`probability ${probability[1][seen].toFixed(2)}`);
    }
    this.where.textContent = parts.join(" · ");
    this.slider.setAttribute("aria-valuenow", this.frame + 1);
    this.slider.setAttribute("aria-valuetext", parts.join(", "));
    this.root.dataset.frame = this.frame; // for whoever drives a browser
  }
}

async function render({ model, el }) {
  let view = null;
  let closed = false;
  const open = async () => {
    const given = model.get("contents");
    const show = (contents) => {
      if (closed || given !== model.get("contents")) return;
      view?.close();
      view = new View(model, el, contents);
    };
    try {
      show(await read(given));
    } catch (error) {
      el.replaceChildren(make("p", { class: "tcar-failed" }, `This clip cannot be shown: ${error.message}`));
    }
  };
  model.on("change:contents", open);
  await open();
  return () => {
    closed = true;
    model.off("change:contents", open);
    view?.close();
  };
}

export default { render };
