// Many clips on one page: filters, a scatter whose points open clips, and each clip drawn when it is scrolled to.

const GROUPS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#9a8c00", "#7a7f87"];
const VERDICTS = { passed: "methods passed", failed: "a method failed", untested: "methods not tested" };
const ANSWERS = { wrong: "wrong", right: "right", unknown: "not known" };

class Gallery {
  constructor({ title, entries }) {
    this.entries = entries.map((entry, number) => ({
      ...entry, number, answer: entry.wrong === null ? "unknown" : entry.wrong ? "wrong" : "right", model: null,
    }));
    this.groups = [...new Set(this.entries.map(({ group }) => group))].sort();
    this.theme = "auto";
    this.build(title);
    this.filter();
    this.watch();
  }

  build(title) {
    this.selects = {
      group: this.select("Group", this.groups.map((group) => [group, group || "no group"])),
      answer: this.select("Answer", Object.entries(ANSWERS)),
      methods: this.select("Methods", Object.entries(VERDICTS)),
    };
    this.count = make("output", { class: "count", "aria-live": "polite" });
    this.themeButton = iconButton("auto", "Theme: auto", () => this.nextTheme());
    this.themeButton.classList.add("theme");
    for (const entry of this.entries) entry.card = this.card(entry);
    const page = make("div", { class: "tcar-gallery" },
      make("header", {}, make("h1", {}, title), this.themeButton),
      make("div", { class: "filters", role: "group", "aria-label": "Filters" },
        ...Object.values(this.selects).map(({ outer }) => outer), this.count),
      this.scatter(),
      make("div", { class: "cards" }, ...this.entries.map(({ card }) => card)));
    document.getElementById("view").replaceChildren(page);
  }

  // A filter with the number of clips behind each choice; what no clip has is not offered.
  select(label, options) {
    const name = label.toLowerCase();
    const counted = options
      .map(([value, text]) => [value, text, this.entries.filter((entry) => entry[name] === value).length])
      .filter(([, , found]) => found);
    const made = make("select", { "data-filter": name, onchange: () => this.filter() },
      make("option", { value: "all" }, `all (${this.entries.length})`),
      ...counted.map(([value, text, found]) => make("option", { value: `=${value}` }, `${text} (${found})`)));
    return { made, outer: make("label", {}, make("span", {}, label), made) };
  }

  card(entry) {
    const heading = make("p", { class: "waiting" }, entry.title);
    return make("article", { id: `clip-${entry.number}`, "aria-label": entry.title }, heading);
  }

  filter() {
    for (const entry of this.entries) {
      entry.shown = Object.entries(this.selects).every(([name, { made }]) => made.value === "all" || made.value === `=${entry[name]}`);
      entry.card.hidden = !entry.shown;
      entry.dot?.classList.toggle("away", !entry.shown);
      entry.dot?.setAttribute("tabindex", entry.shown ? "0" : "-1");
    }
    const shown = this.entries.filter((entry) => entry.shown);
    const wrong = shown.filter(({ answer }) => answer === "wrong").length;
    this.count.textContent = `${shown.length} of ${this.entries.length} clips, ${wrong} answered wrong`;
  }

  // -- the scatter

  scatter() {
    const placed = this.entries.filter(({ point }) => point);
    if (!placed.length) return "";
    const drawn = svg("svg", { role: "group", "aria-label": "Places of the clips; each point opens its clip" });
    const spans = [0, 1].map((axis) => {
      const values = placed.map(({ point }) => point[axis]);
      return [Math.min(...values), Math.max(...values) - Math.min(...values) || 1];
    });
    for (const entry of placed) {
      const [x, y] = entry.point.map((value, axis) => (value - spans[axis][0]) / spans[axis][1]);
      entry.dot = this.dot(entry, `${2 + 96 * x}%`, `${96 - 92 * y}%`);
      drawn.append(entry.dot);
    }
    const legend = this.groups.map((group) => this.key(group));
    if (placed.some(({ answer }) => answer === "wrong")) legend.push(make("span", {}, make("i", { class: "ring" }), "answered wrong"));
    return make("figure", { class: "scatter" }, drawn, make("figcaption", {}, ...legend));
  }

  dot(entry, cx, cy) {
    const dot = svg("circle", {
      cx, cy, r: entry.answer === "wrong" ? 6 : 5, tabindex: 0, role: "button", fill: this.colour(entry.group),
      class: entry.answer, "aria-label": `${entry.title}, ${entry.group || "no group"}, answer ${ANSWERS[entry.answer]}`,
    });
    const title = svg("title", {});
    title.textContent = `${entry.title}\n${entry.group}`;
    dot.append(title);
    dot.addEventListener("click", () => this.open(entry));
    dot.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.open(entry);
    });
    return dot;
  }

  colour(group) { return GROUPS[this.groups.indexOf(group) % GROUPS.length]; }

  key(group) {
    const swatch = make("i");
    swatch.style.background = this.colour(group);
    return make("span", {}, swatch, group || "no group");
  }

  // -- clips

  async draw(entry) {
    if (entry.model) return;
    entry.model = new PlainModel({ contents: stored(`contents-${entry.number}`), theme: this.theme });
    await render({ model: entry.model, el: entry.card });
    entry.card.dataset.drawn = "";
  }

  // Scrolled to twice: clips above may be drawn on the way, and are then taller than their places.
  async open(entry) {
    entry.card.scrollIntoView({ block: "start" });
    await this.draw(entry);
    entry.card.scrollIntoView({ block: "start" });
    entry.card.querySelector(".tcar-viewer")?.focus({ preventScroll: true });
    for (const one of this.entries) one.dot?.classList.toggle("open", one === entry);
  }

  watch() {
    const root = document.documentElement;
    const observer = new IntersectionObserver(async (seen) => {
      const near = seen.filter(({ isIntersecting }) => isIntersecting).map(({ target }) => target);
      await Promise.all(this.entries.filter(({ card }) => near.includes(card)).map((entry) => this.draw(entry)));
      root.dataset.ready ??= Math.round(performance.now());
    }, { rootMargin: "150px" });
    for (const { card } of this.entries) observer.observe(card);
  }

  nextTheme() {
    this.theme = THEMES[(THEMES.indexOf(this.theme) + 1) % THEMES.length];
    document.documentElement.dataset.theme = this.theme;
    relabel(this.themeButton, this.theme, `Theme: ${this.theme}`);
    for (const { model } of this.entries) model?.set("theme", this.theme);
  }
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function showGallery() { new Gallery(stored("index")); }
