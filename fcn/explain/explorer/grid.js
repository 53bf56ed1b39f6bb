// What is pointed at, and grids of numbers.

// A selection names an input, a weight or an output by its position in reading order: {input: 3};
// an entry of the matrix is {output: 5, input: 3}. In the address: "x1,1", "y1,1x1,1".
let hovered = null;
let now = null; // the layer, its results and sizes as last drawn; null where there is no such layer
const LETTERS = { input: "x", weight: "w", output: "y" };

const index = (kind, position) => `${floor(position / now.sides[kind])},${position % now.sides[kind]}`;

function pinned() {
  const found = [...state.at.matchAll(/([xwy])(\d+),(\d+)/g)].map(([, letter, row, column]) => {
    const kind = keys(LETTERS).find((name) => LETTERS[name] === letter), side = now.sides[kind];
    return [kind, row < side && column < side ? row * side + Number(column) : NaN];
  });
  return found.length && found.every(([, at]) => at >= 0) ? fromEntries(found) : null;
}

function pin(selection) {
  state.at = entries(selection ?? {}).map(([kind, at]) => LETTERS[kind] + index(kind, at)).join("");
  hovered = null;
  mark();
  writeAddress();
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// Return the connections of a selection, and their members.
function lights(selection) {
  const parts = entries(selection ?? {});
  const links = now.result.links.filter((link) => parts.length && parts.every(([kind, at]) => link[kind] === at));
  const members = (kind) => new Set(links.map((link) => link[kind]));
  const pairs = new Set(links.map((link) => pairKey(link)));
  const [input, weight, output] = keys(LETTERS).map(members);
  return { selection: selection ?? {}, links, pairs, input, weight, output };
}

const pairKey = ({ input, output }) => output * 100 + input; // there are at most 64 inputs

// Return how a cell lights up: "on" (selected), "lit" (connected), or "band" in a row or column of the matrix.
function lightOf(ref, lit) {
  const { selection } = lit;
  if (!ref) return "";
  if (ref.output !== undefined && ref.input !== undefined) {
    const row = ref.output === selection.output, column = ref.input === selection.input;
    return row && column ? "on" : lit.pairs.has(pairKey(ref)) ? "lit" : row || column ? "band" : "";
  }
  const [[kind, at]] = entries(ref);
  return same(ref, selection) ? "on" : lit[kind].has(at) ? "lit" : "";
}

const $ = (id) => document.getElementById(id);
const on = (element, type, action) => element.addEventListener(type, action);
const most = (values) => values.reduce((largest, value) => max(largest, abs(value)), 0);
const clamp = (value, least, largest) => max(least, min(largest, value));

let palette; // the colours of the light or dark page, as [red, green, blue]
function readPalette() {
  const style = getComputedStyle(document.documentElement);
  const rgb = (name) => style.getPropertyValue(`--${name}`).match(/[0-9a-f]{2}/gi).map((part) => parseInt(part, 16));
  palette = fromEntries(["plus", "minus", "panel", "mark", "accent"].map((name) => [name, rgb(name)]));
}
const css = (rgb) => `rgb(${rgb.map(round)})`;

// Return the background of a number: red above zero, blue below, pale under its text.
function shade(value, limit) {
  const colour = value > 0 ? palette.plus : palette.minus, strength = 0.62 * min(1, abs(value) / (limit || 1));
  return palette.panel.map((part, i) => part + strength * (colour[i] - part));
}

/**
 * A grid of numbers that can be pointed at: a table where cells have room for numbers, otherwise a
 * canvas of colours.
 */
class Grid {
  // still: it only shows numbers, and takes no part in pointing.
  constructor(place, { cellMost = 34, width = 300, onEdit, still = false } = {}) {
    assign(this, { cellMost, width, onEdit, still, host: document.createElement("figure") });
    this.host.innerHTML = "<figcaption></figcaption><div></div>";
    place.append(this.host);
    const body = this.host.lastChild;
    if (still && !onEdit) return;
    on(body, "pointermove", (event) => event.pointerType !== "touch" && this.hover(this.cellAt(event)));
    on(body, "pointerleave", () => this.hover(-1));
    on(body, "click", (event) => this.toggle(this.cellAt(event)));
    on(body, "keydown", (event) => this.press(event));
    on(body, "input", (event) => this.edit(event.target));
  }

  /**
   * Show numbers under a title. ref(r, c) -> what a cell stands for, as a selection; kind(r, c) ->
   * "zero" (put in by the layer), "cut" (computed, then cut off) or ""; extra(r, c, lit) -> a light
   * of the view's own; limit: the number with the strongest colour; cells(selection) -> the cells
   * [r, c] that can have a colour or light up, where these are few.
   */
  show(title, values, options = {}) {
    const { ref = () => null, kind = () => "", extra = () => "", limit = most(values.flat()) } = options;
    let { cells } = options;
    const rows = values.length, columns = values[0].length;
    cells ??= () => values.flatMap((row, r) => row.map((_, c) => [r, c]));
    assign(this, { title, values, ref, kind, extra, limit, cells, rows, columns });
    const room = min(now.room, this.width);
    this.cell = min(this.cellMost, floor(room / columns) - 1);
    const table = this.cell > 18 && rows * columns <= 420; // smaller or more cells are unreadable
    const form = [rows, columns, table, this.cell].join();
    if (form !== this.form) this.build(table, room);
    this.form = form;
    this.host.firstChild.textContent = title;
    if (table) this.fill(); else this.paint();
  }

  build(table, room) {
    this.active = 0; // the cell that the Tab key stops at; the arrow keys move on from it
    const body = this.host.lastChild, plain = this.still && !this.onEdit;
    const input = '<input inputmode="decimal" autocomplete="off" tabindex="-1">';
    const cell = `<td${plain || this.onEdit ? "" : ' tabindex="-1"'}>${this.onEdit ? input : ""}`;
    const rows = `<tr>${cell.repeat(this.columns)}`.repeat(this.rows);
    body.innerHTML = table ? `<table class="grid"${plain ? "" : ' role="grid"'}>${rows}</table>`
      : `<canvas role="img"${plain ? "" : ' tabindex="0"'}></canvas>`;
    this.canvas = body.querySelector("canvas");
    if (this.canvas) return this.buildCanvas(room);
    body.style.setProperty("--cell", `${this.cell}px`);
    this.tds = [...body.querySelectorAll("td")];
    this.stops = this.onEdit ? this.tds.map((td) => td.firstChild) : this.tds;
    if (plain) return;
    this.stops[0].tabIndex = 0;
    this.stops.forEach((stop, i) => {
      on(stop, "focus", () => this.arrive(i));
      on(stop, "blur", () => this.fill());
    });
  }

  buildCanvas(room) {
    const side = min(room / this.columns, 440 / this.rows, this.cellMost + 1); // square cells, unless too narrow
    const width = max(side * this.columns, min(room, 180)), height = max(side * this.rows, 120);
    this.canvas.style.cssText = `width: ${width}px; height: ${height}px`;
    assign(this.canvas, { width: width * devicePixelRatio, height: height * devicePixelRatio });
    this.base = assign(document.createElement("canvas"), { width: this.columns, height: this.rows });
  }

  place(i) {
    return [floor(i / this.columns), i % this.columns];
  }

  fill() {
    this.host.querySelector("table").ariaLabel = this.title;
    const texts = this.values.flat().map((value) => short(value, this.cell < 32 ? 2 : 3));
    const longest = max(...texts.map((text) => text.length));
    this.host.lastChild.style.setProperty("--text", `${clamp(this.cell * min(0.4, 1.6 / longest), 8, 15)}px`);
    this.tds.forEach((cell, i) => {
      const [r, c] = this.place(i), value = this.values[r][c], kind = this.kind(r, c), stop = this.stops[i];
      const rounded = parseNumber(texts[i]) === value ? "" : `, exactly ${exact(value)}`;
      cell.style.backgroundColor = css(shade(value, this.limit));
      cell.dataset.kind = kind;
      if (!this.onEdit) cell.textContent = texts[i];
      else if (stop !== document.activeElement) assign(stop, { value: texts[i], ariaInvalid: false });
      if (this.still && !this.onEdit) return;
      stop.ariaLabel = `row ${r}, column ${c}: ${texts[i]}${rounded}${kind && `, ${kind}`}`;
    });
  }

  // Paint the numbers as colours, one pixel each, for `markCanvas` to enlarge.
  paint() {
    const image = new ImageData(this.columns, this.rows);
    for (const [r, c] of this.cells({})) {
      const colour = shade(this.values[r][c], this.limit), alpha = this.kind(r, c) === "cut" ? 90 : 255;
      image.data.set([...colour, alpha], 4 * (r * this.columns + c));
    }
    this.base.getContext("2d").putImageData(image, 0, 0);
    this.canvas.ariaLabel = `${this.title}: ${this.rows} by ${this.columns} colours; the arrow keys select one`;
  }

  mark(lit) {
    const light = (r, c) => lightOf(this.ref(r, c), lit) || this.extra(r, c, lit);
    if (this.canvas) this.markCanvas(light, lit.selection);
    else this.tds.forEach((cell, i) => { cell.className = `${cell.dataset.kind} ${light(...this.place(i))}`; });
  }

  markCanvas(light, selection) {
    const { width, height } = this.canvas, pen = this.canvas.getContext("2d");
    const w = width / this.columns, h = height / this.rows, side = min(w, h);
    pen.globalAlpha = 1;
    pen.clearRect(0, 0, width, height);
    pen.imageSmoothingEnabled = side < 1;
    pen.drawImage(this.base, 0, 0, width, height);
    if (!keys(selection).length) return;
    for (const [r, c] of this.cells(selection)) {
      const how = light(r, c);
      if (!how) continue;
      pen.globalAlpha = how === "band" ? 0.25 : 0.7;
      pen.fillStyle = css(how === "on" ? palette.accent : palette.mark);
      pen.fillRect(c * w, r * h, max(1.5, w), max(1.5, h));
    }
  }

  // Return the number of the cell under the pointer, in reading order, or -1.
  cellAt(event) {
    if (!this.canvas) return this.tds.indexOf(event.target.closest("td"));
    const box = this.canvas.getBoundingClientRect();
    const along = (part, all, n) => clamp(floor(part / all * n), 0, n - 1);
    return along(event.clientY - box.top, box.height, this.rows) * this.columns
      + along(event.clientX - box.left, box.width, this.columns);
  }

  selectionAt(i) {
    return i < 0 ? null : this.ref(...this.place(i));
  }

  hover(i) {
    const selection = this.selectionAt(i);
    if (same(selection, hovered)) return;
    hovered = selection;
    mark();
  }

  // Pin what a cell stands for; a second click lets go.
  toggle(i) {
    const selection = this.selectionAt(i), again = same(selection, pinned()) && !this.arrived && !this.onEdit;
    this.arrived = false;
    if (i >= 0) pin(again ? null : selection);
  }

  // A cell has the focus: pin it; the Tab key stops at it from now on.
  arrive(i) {
    const stop = this.stops[i], selection = this.selectionAt(i);
    this.stops[this.active].tabIndex = -1;
    stop.tabIndex = 0;
    this.active = i;
    if (this.onEdit) {
      stop.value = exact(this.values.flat()[i]);
      stop.select();
    }
    this.arrived = !same(selection, pinned()); // then the click that gave the focus must not let go
    pin(selection);
  }

  press(event) {
    const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const [down, right] = steps[event.key] ?? [];
    if (event.key === "Escape") pin(null);
    if (down === undefined) return;
    event.preventDefault();
    const [r, c] = this.place(this.active);
    const to = clamp(r + down, 0, this.rows - 1) * this.columns + clamp(c + right, 0, this.columns - 1);
    if (!this.canvas) return this.stops[to].focus();
    this.active = to;
    pin(this.selectionAt(to));
  }

  edit(stop) {
    const value = parseNumber(stop.value), good = Number.isFinite(value);
    stop.ariaInvalid = !good;
    if (good) this.onEdit(this.values.flat().with(this.stops.indexOf(stop), value).join());
  }
}
