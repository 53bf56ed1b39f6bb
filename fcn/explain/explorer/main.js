// The selection in words, the controls, and the start of the page.

const named = (kind, position) => `${LETTERS[kind]}[${index(kind, position)}]`;
const valued = (kind, position) => `${named(kind, position)} = ${exact(now.flat[kind][position])}`;

function describe({ selection: { input, weight, output }, links }) {
  if (input !== undefined && output !== undefined)
    return `The matrix takes ${named("input", input)} to ${named("output", output)} by `
      + `${links.length ? valued("weight", links[0].weight) : "0: they are not connected"}.`;
  if (output !== undefined) return describeOutput(output, links);
  if (weight !== undefined)
    return `${valued("weight", weight)} joins ${count(links.length, "input")} to as many outputs: `
      + "one band of the matrix.";
  if (input === undefined)
    return "Point at a number to follow it; click, tap or use the arrow keys to keep it. "
      + "Rows and columns count from 0.";
  const lost = now.flat.weight.length - links.length;
  return `${valued("input", input)} reaches ${count(links.length, "output")}, each through another `
    + `weight${state.t && lost ? `; ${count(lost, "product")} of its stamp cut off` : ""}.`;
}

// Write an output as its sum: "y[1,0] = x[0,0]·w[1,0] + … = 1·2 + … = 14".
function describeOutput(output, links) {
  if (!links.length) return `${named("output", output)} = 0: no input reaches it.`;
  const product = (term, { input, weight }) => `${term("input", input)}·${term("weight", weight)}`;
  const sum = (term) => links.slice(0, 4).map((link) => product(term, link)).join(" + ")
    + (links.length > 4 ? ` + ${links.length - 4} more` : "");
  return `${named("output", output)} = ${sum(named)} = ${sum((kind, at) => exact(now.flat[kind][at]))} = `
    + `${exact(now.flat.output[output])}`;
}

let later; // a timer: the views that take long are drawn once changes pause
function draw() {
  clearTimeout(later);
  now = hovered = null;
  drawControls();
  $("views").hidden = false;
  try {
    now = compute();
  } catch (error) {
    $("problem").textContent = `There is no such layer. ${error.message}`;
  }
  $("problem").hidden = now !== null;
  $("views").hidden = $("bar").hidden = now === null;
  $("summary").textContent = now ? `${square(state.n)} in, ${square(now.size)} out` : "no output";
  if (!now) return;
  for (const view of [drawStamps, drawLine, drawWindows, drawRepeat, drawMatrix, drawBackward, drawOverlap]) view();
  drawSize();
  drawCode();
  later = setTimeout(() => { drawChannels(); drawPicture(); }, 150);
  mark();
}

function compute() {
  const layer = layerOf(state), size = outputSize(state.n, state.k, layer);
  const gradOutput = size > 0 ? fill(state.g, size, { seed: state.r + 2000, integers: true }) : undefined;
  const result = explore({ ...layer, gradOutput });
  const flat = { input: layer.input.flat(), weight: layer.kernel.flat(), output: result.output.flat() };
  const room = max(200, $("views").clientWidth); // 0 in a hidden frame
  return { layer, result, gradOutput, size, flat, room, sides: { input: state.n, weight: state.k, output: size } };
}

// Light up what is connected with what is pointed at, or pinned.
function mark() {
  if (!now) return;
  const lit = lights(hovered ?? pinned());
  for (const grid of Object.values(grids)) if (!grid.host.closest("[hidden]")) grid.mark(lit);
  $("readout").textContent = describe(lit);
  $("clear").hidden = !state.at;
  Object.values(players).forEach(({ update }) => update());
}

function drawControls() {
  const name = choiceName(), choice = CHOICES[name];
  for (const link of document.querySelectorAll(".chips a")) {
    const chosen = link.hash === `#${name}`;
    if (chosen && link.ariaCurrent !== "true") link.parentNode.parentNode.scrollLeft = link.offsetLeft - 40;
    link.ariaCurrent = chosen;
  }
  $("story").textContent = tidy(choice?.words ?? "Your own setting. The address of this page holds it.");
  if (choice?.view) $("story").append(" ", viewLink(choice.view, "See it below."));
  document.querySelector(`[name=t][value="${state.t}"]`).checked = true;
  for (const [key, [, least, largest]] of entries(SETTINGS)) {
    const field = $(key);
    if (field !== document.activeElement) field.value = state[key];
    field.previousSibling.disabled = state[key] <= least;
    field.nextSibling.disabled = state[key] >= largest || (key === "o" && !state.t);
  }
  for (const key of keys(FILLS)) {
    $(key).value = state[key];
    if ($(key).selectedIndex < 0) $(key).value = "edited";
  }
  drawPictureControls();
  drawNotice();
}

function drawNotice() {
  $("limit").textContent = notice;
}

function addSetting(key, label, html) {
  const setting = `<div class="setting"><label for="${key}">${label}</label>${html}</div>`;
  $("controls").insertAdjacentHTML("beforeend", setting);
}

// Add a number with a button on either side; a value out of range is said and not taken.
function addStepper(key) {
  const [label, least, largest] = SETTINGS[key];
  const button = (name, sign) =>
    `<button type="button" tabindex="-1" aria-label="${label}: one ${name}">${sign}</button>`;
  const input = `<input id="${key}" type="number" min="${least}" max="${largest}">`;
  addSetting(key, label, `<span class="stepper">${button("less", "−")}${input}${button("more", "+")}</span>`);
  const field = $(key), set = (value) => {
    if (Number.isInteger(value) && value >= least && value <= largest) return change({ [key]: value });
    notice = `${range(key)}, in whole numbers.`;
    drawNotice();
  };
  on(field.previousSibling, "click", () => set(state[key] - 1));
  on(field.nextSibling, "click", () => set(state[key] + 1));
  on(field, "input", () => field.value && set(Number(field.value)));
  on(field, "blur", () => { field.value = state[key]; });
}

function addChooser(key) {
  const [label, names] = FILLS[key];
  const words = { count: "1, 2, 3, …", dot: "a single 1", repeat: "repeat + q", diagonal: "w, diagonal" };
  const options = names.map((name) => `<option value="${name}">${words[name] ?? name}</option>`).join("");
  addSetting(key, label, `<select id="${key}">${options}
    <option value="again">random, again</option><option value="edited" disabled>edited by hand</option></select>`);
  on($(key), "change", ({ target: { value } }) =>
    change(value === "again" ? { [key]: key === "cw" ? state.cw : "random", r: state.r + 1 } : { [key]: value }));
}

const players = {};
// Add play, step and drag controls; get() -> position, last() -> the largest. A loop plays until the page is used.
function addPlayer(section, what, { get, last, go }) {
  const box = $(section).querySelector(".player");
  box.innerHTML = `<button class="play">Play</button><button aria-label="previous ${what}">‹</button>`
    + `<input type="range" min="0" aria-label="${what}"><button aria-label="next ${what}">›</button>`
    + "<output></output>";
  const [play, back, slider, next, text] = box.children;
  let timer = null, loops = false;
  const stop = () => {
    timer = clearTimeout(timer);
    loops = false;
    play.textContent = "Play";
    $("readout").ariaLive = "polite";
  };
  const step = () => {
    if (!now || (get() === last() && !loops)) return stop();
    go(get() < last() ? get() + 1 : 0);
    timer = setTimeout(step, get() === last() ? 2500 : clamp(9000 / last(), 90, 800));
  };
  const start = (loop = false) => {
    stop();
    loops = loop;
    $("readout").ariaLive = "off"; // a screen reader could not keep up
    play.textContent = "Pause";
    if (get() === last()) go(0);
    timer = setTimeout(step, 500);
  };
  const stopAnd = (action) => () => { stop(); action(); };
  on(play, "click", () => (timer ? stop() : start()));
  on(back, "click", stopAnd(() => go(max(0, get() - 1))));
  on(next, "click", stopAnd(() => go(get() < last() ? get() + 1 : 1)));
  on(slider, "input", stopAnd(() => go(Number(slider.value))));
  const update = () => {
    assign(slider, { max: last(), value: get() });
    text.textContent = `${what} ${get()} of ${last()}`;
  };
  players[section] = { start, stop, update, looping: () => loops };
}

// Copy a text, or select it where the browser forbids copying; the button says which.
async function copy(text, button, shown) {
  const label = button.textContent, copied = await navigator.clipboard?.writeText(text).then(() => true, () => false);
  if (!copied && shown) getSelection().selectAllChildren(shown); // ready for Ctrl+C
  if (!copied && !shown) prompt("Copy this line:", text);
  button.textContent = copied ? "Copied" : shown ? "Selected" : label;
  setTimeout(() => { button.textContent = label; }, 1500);
}

function addListing(name) {
  const heading = `<h3>${name} <button aria-label="Copy the ${name} code">Copy</button></h3>`;
  const listing = `<pre id="${name}" tabindex="0" role="region" aria-label="${name} code"></pre>`;
  $("listings").insertAdjacentHTML("beforeend", heading + listing);
  const code = $(name), button = code.previousSibling.lastChild;
  on(button, "click", () => copy(code.textContent, button, code));
}

// Return a link to a view that keeps the state.
function viewLink(view, words) {
  const link = assign(document.createElement("a"), { href: `#${view}`, textContent: words });
  on(link, "click", (event) => {
    event.preventDefault();
    goTo(view);
  });
  return link;
}

function goTo(view) {
  const heading = $(view)?.querySelector("h2");
  if (!heading) return;
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
  $(view).scrollIntoView();
}

// Make links or buttons one stop of the Tab key; the arrow keys move on from it.
function roving(list) {
  const items = () => [...list.querySelectorAll("a, button")];
  items().forEach((item, i) => { item.tabIndex = i ? -1 : 0; });
  on(list, "keydown", ({ key, target }) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[key], all = items();
    if (step) all[(all.indexOf(target) + step + all.length) % all.length]?.focus();
  });
  on(list, "focusin", ({ target }) => items().forEach((item) => { item.tabIndex = item === target ? 0 : -1; }));
}

function followAddress() {
  const given = new URLSearchParams(location.hash.slice(1)), embedded = given.get("embed") ?? "";
  Object.values(players).forEach((player) => player.stop());
  state = readAddress(location.hash);
  document.body.classList.toggle("embedded", VIEWS.includes(embedded));
  for (const view of [...VIEWS, "repeat"]) $(view).classList.toggle("alone", view === embedded);
  draw();
  if (given.get("view")) goTo(given.get("view"));
}

function start() {
  const narrow = matchMedia("(max-width: 56rem)"), still = matchMedia("(prefers-reduced-motion: reduce)");
  readPalette();
  makeGrids();
  makeChannels();
  entries(SETTINGS).slice(0, 6).forEach(([key]) => addStepper(key));
  keys(FILLS).slice(0, 3).forEach(addChooser);
  const where = VIEWS.indexOf("kernels") + 1;
  $("controls").insertAdjacentHTML("beforeend", `<p class="soft">Channels, in view ${where}:</p>`);
  ["ci", "co", "gr"].forEach(addStepper);
  addChooser("cw");
  makePicture();
  makeSaving();
  addPlayer("stamps", "stamp", { get: stampedCount, last: () => state.n ** 2, go: stampTo });
  addPlayer("windows", "output", {
    get: () => (pinned()?.output ?? -1) + 1, last: () => now.size ** 2,
    go: (position) => pin(position ? { output: position - 1 } : null),
  });
  ["PyTorch", "TensorFlow", "JAX"].forEach(addListing);
  VIEWS.forEach((view, i) => {
    const heading = $(view).querySelector("h2"), item = document.createElement("li");
    item.append(viewLink(view, `${i + 1} ${$(view).dataset.name}`));
    $("jump").append(item);
    heading.prepend(`${i + 1}. `);
  });
  [$("jump"), $("questions"), $("presets"), $("stampList")].forEach(roving);
  for (const radio of document.getElementsByName("t")) on(radio, "change", () => switchLayer(Number(radio.value)));
  on($("controls"), "submit", (event) => event.preventDefault());
  on($("clear"), "click", () => pin(null));
  on(document.querySelector(".skip"), "click", (event) => { event.preventDefault(); goTo("stamps"); });
  on(window, "hashchange", followAddress);
  on(window, "resize", draw);
  const fold = () => { $("panel").open = !narrow.matches; };
  on(narrow, "change", fold);
  fold();
  on(matchMedia("(prefers-color-scheme: dark)"), "change", () => { readPalette(); draw(); });
  followAddress();
  const used = () => { // ends the loop with which the page opens
    if (!players.stamps.looping()) return;
    players.stamps.stop();
    state.step = "";
    draw();
  };
  for (const type of ["click", "input", "keydown"]) on(document, type, used);
  if (!location.hash && !still.matches) players.stamps.start(true);
}

start();
