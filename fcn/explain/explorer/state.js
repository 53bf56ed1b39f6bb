// The state of the page and its address; questions and examples, which are states with words.

const SETTINGS = { // name in the address -> label, least, most
  n: ["input size", 1, 8], k: ["kernel_size", 1, 16], s: ["stride", 1, 8],
  p: ["padding", 0, 16], o: ["output_padding", 0, 7], d: ["dilation", 1, 4],
  ci: ["in channels", 1, 3], co: ["out channels", 1, 3], gr: ["groups", 1, 3],
};
const FILLS = {
  x: ["input x", ["ones", "count", "dot", "random"]],
  w: ["kernel w", ["ones", "count", "bilinear", "nearest", "repeat", "random"]],
  g: ["gradient dy", ["ones", "count", "random"]],
  cw: ["all kernels", ["different", "diagonal"]],
};
const VIEWS = ["stamps", "line", "windows", "kernels", "matrix", "backward", "overlap", "picture", "size", "code"];
// The layer that people use to double a size, with unequal numbers.
const DEFAULTS = {
  t: 1, n: 2, k: 4, s: 2, p: 1, o: 0, d: 1, x: "count", w: "count", g: "ones", r: 1,
  ci: 2, co: 3, gr: 1, cw: "different", b: "5,0,-5", m: 1, at: "", step: "",
};

// The questions and examples: name -> its settings, its words and the view that shows it, as they stand in index.html.
const CHOICES = fromEntries([...document.querySelectorAll(".chips a")].map((link) => {
  const given = entries(fromEntries(new URLSearchParams(link.dataset.set.replaceAll(" ", "&"))));
  const value = (key, text) => (typeof DEFAULTS[key] === "number" ? Number(text) : text);
  const settings = fromEntries(given.map(([key, text]) => [key, value(key, text)]));
  return [link.hash.slice(1), { settings, words: link.nextElementSibling.textContent, view: link.dataset.view }];
}));

let state = { ...DEFAULTS };
let notice = ""; // what the page has to say about a value that it did not take

const choiceState = (name) => ({ ...DEFAULTS, ...CHOICES[name]?.settings });
const range = (name) => `${SETTINGS[name][0]} goes from ${SETTINGS[name][1]} to ${SETTINGS[name][2]}`;

// Return the state that an address such as "#why-zeros" or "#ones&k=4" describes.
function readAddress(hash) {
  const given = new URLSearchParams(hash.slice(1)), words = [...given.keys()];
  const result = choiceState(words.find((word) => CHOICES[word]));
  const unknown = words.filter((word) => !(word in DEFAULTS || word in CHOICES || ["view", "embed"].includes(word)));
  notice = unknown.length ? `The address has unknown parts: ${unknown.join(", ")}.` : "";
  for (const [name, start] of entries(DEFAULTS)) {
    const text = given.get(name), value = typeof start === "number" ? parseInt(text, 10) : text;
    if (text && !Number.isNaN(value)) result[name] = value;
  }
  for (const [name, [, least, largest]] of entries({ ...SETTINGS, t: ["", 0, 1], m: ["", 1, 3] })) {
    if (result[name] >= least && result[name] <= largest) continue;
    if (SETTINGS[name]) notice = `The address asks for ${name}=${result[name]}, but ${range(name)}.`;
    result[name] = clamp(result[name], least, largest);
  }
  return result;
}

const differences = (name) => keys(DEFAULTS).filter((key) => state[key] !== choiceState(name)[key]);
const choiceName = () => keys(CHOICES).find((name) => differences(name).every((key) => key === "at" || key === "step"));

// Return the address of the state.
function address() {
  const name = choiceName(), parts = differences(name).map((key) => `${key}=${state[key]}`);
  return `#${[...(name ? [name] : []), ...parts].join("&")}`;
}

let writing;
// Write the state to the address once changes pause; browsers limit how often.
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => history.replaceState(null, "", address()), 300);
}

// Change the state. Another shape ends what was pinned or half stamped.
function change(changes) {
  const shaped = keys(changes).some((name) => name === "t" || SETTINGS[name]);
  if (changes.n) state.x = resize(state.x, state.n, changes.n);
  if (changes.k) state.w = resize(state.w, state.k, changes.k);
  assign(state, shaped ? { at: "", step: "" } : {}, changes);
  notice = "";
  draw();
  writeAddress();
}

// Switch to the transpose: what was the output's size is the input's.
function switchLayer(transposed) {
  const size = now?.size ?? state.n, largest = SETTINGS.n[2];
  change({ t: transposed, n: min(size, largest), o: 0 });
  if (size > largest) notice = `The input would be ${square(size)}, but ${range("n")}.`;
  drawNotice();
}

function layerOf({ t, n, k, s, p, o, d, x, w, r }) {
  return {
    transposed: t === 1, stride: s, padding: p, outputPadding: o, dilation: d,
    input: fill(x, n, { seed: r, integers: true }), kernel: fill(w, k, { seed: r + 1000, stride: s }),
  };
}
