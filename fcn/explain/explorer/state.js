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
const LIMITS = { ...SETTINGS, t: ["t", 0, 1], m: ["the number of layers", 1, 3] };
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
const range = (name) => `${LIMITS[name][0]} goes from ${LIMITS[name][1]} to ${LIMITS[name][2]}`;

// Return the state that an address such as "#why-zeros" or "#ones&k=4" describes.
function readAddress(hash) {
  const given = new URLSearchParams(hash.slice(1)), words = [...given.keys()], said = [];
  const usual = choiceState(words.find((word) => CHOICES[word])), result = { ...usual };
  const refuse = (name, value, rule) => said.push(`The address asks for ${name}=${value}, but ${rule}.`);
  const unknown = words.filter((word) => !(word in DEFAULTS || word in CHOICES || ["view", "embed"].includes(word)));
  if (unknown.length) said.push(`The address has unknown parts: ${unknown.join(", ")}.`);
  for (const [name, start] of entries(DEFAULTS)) {
    const text = given.get(name), numeric = typeof start === "number";
    if (text && numeric && !Number.isInteger(Number(text))) refuse(name, text, `${name} is a whole number`);
    else if (text) result[name] = numeric ? Number(text) : text;
  }
  for (const [name, [, least, largest]] of entries(LIMITS)) {
    if (result[name] >= least && result[name] <= largest) continue;
    refuse(name, result[name], range(name));
    result[name] = clamp(result[name], least, largest);
  }
  const { n, k, b, cw } = result, size = max(0, outputSize(n, k, optionsOf(result)));
  const texts = entries({ x: n, w: k, g: size }).map(([name, side]) => [name,
    NAMES.includes(result[name]) || isList(result[name], side * side),
    `${NAMES.join(", ")} or a list of ${count(side * side, "number")}`]);
  texts.push(["b", isList(b, 1, 3), "a list of 1 to 3 numbers"]);
  texts.push(["cw", FILLS.cw[1].includes(cw), FILLS.cw[1].join(" or ")]);
  for (const [name, good, rule] of texts) if (!good) {
    refuse(name, result[name], `${name} is ${rule}`);
    result[name] = usual[name];
  }
  for (const name of ["view", "embed"])
    if (given.get(name) && !VIEWS.includes(given.get(name)))
      refuse(name, given.get(name), `the views are ${VIEWS.join(", ")}`);
  notice = said.join(" ");
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

const optionsOf = ({ t, s, p, o, d }) =>
  ({ transposed: t === 1, stride: s, padding: p, outputPadding: o, dilation: d });

function layerOf({ n, k, s, x, w, r, ...rest }) {
  const input = fill(x, n, { seed: r, integers: true }), kernel = fill(w, k, { seed: r + 1000, stride: s });
  return { ...optionsOf({ s, ...rest }), input, kernel };
}
