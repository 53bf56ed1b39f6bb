// The view of a layer with channels: a kernel for every pair of input and output.

let channelGrids; // x[i], w[i][o], y[o] and b

// Build the cells of a table: a row for each input, a column for each output, the outputs below.
function makeChannels() {
  const place = $("kernels").querySelector(".table"), upTo = [0, 1, 2];
  const cell = (name, options) => new Grid(place, { cellMost: 28, width: 120, still: true, ...options });
  channelGrids = { x: [], w: [[], [], []], y: [] };
  for (const i of upTo) {
    channelGrids.x.push(cell());
    for (const o of upTo) channelGrids.w[i].push(cell());
  }
  channelGrids.b = cell("b", { onEdit: (b) => change({ b }) });
  for (const _ of upTo) channelGrids.y.push(cell("y", { width: 190 }));
}

// Return the layer with channels that the state describes; input 0 and kernel 0, 0 are those of the other views.
function channelLayer() {
  const { layer } = now, { ci, co, gr, cw, b, n, k, r } = state, upTo = (count) => [...Array(count).keys()];
  const input = upTo(ci).map((i) => (i ? fill("random", n, { seed: r + 10 * i, integers: true }) : layer.input));
  const weights = (i, o) => {
    if (cw === "diagonal") return i === o ? layer.kernel : zeros(k, k);
    return i + o ? fill("random", k, { seed: r + 1000 + 10 * i + o, integers: true }) : layer.kernel;
  };
  const joined = (i, o) => floor(i * gr / ci) === floor(o * gr / co);
  const [rows, columns] = layer.transposed ? [ci, co] : [co, ci];
  const kernel = upTo(rows).map((a) => upTo(columns).filter((c) => (layer.transposed ? joined(a, c) : joined(c, a)))
    .map((c) => (layer.transposed ? weights(a, c) : weights(c, a))));
  return { ...layer, input, kernel, weights, joined, groups: gr, bias: upTo(co).map((o) => fill(b, 3, {})[0][o]) };
}

function drawChannels() {
  const { ci, co, gr, k, t } = state, { x, w, y, b } = channelGrids;
  const whole = ci % gr === 0 && co % gr === 0;
  for (const grid of [...x, ...w.flat(), ...y, b]) grid.host.hidden = true;
  const show = (grid, ...rest) => { grid.host.hidden = false; grid.show(...rest); };
  if (!whole) return sayChannels(`The number of groups must divide both numbers of channels: ${gr} does not divide `
    + `${ci % gr ? ci : co}.`, "");
  const layer = channelLayer(), { output, parts } = exploreChannels(layer);
  $("kernels").querySelector(".table").style.setProperty("--columns", co + 1);
  for (let i = 0; i < ci; i++) {
    show(x[i], `x[${i}]`, layer.input[i]);
    for (let o = 0; o < co; o++) {
      const joined = layer.joined(i, o);
      if (joined) show(w[i][o], `w from ${i} to ${o}`, layer.weights(i, o));
      else show(w[i][o], "none: another group", zeros(k, k));
      w[i][o].host.classList.toggle("absent", !joined);
    }
  }
  show(b, "bias b", [layer.bias]);
  for (let o = 0; o < co; o++) show(y[o], `y[${o}]`, output[o]);
  const shape = t ? `(${ci}, ${co / gr}, ${k}, ${k}): in, out / groups`
    : `(${co}, ${ci / gr}, ${k}, ${k}): out, in / groups`;
  const others = !t ? `those of TensorFlow and JAX (${k}, ${k}, ${ci / gr}, ${co})`
    : gr > 1 ? "the transposed layers of TensorFlow and JAX have no groups"
    : `those of TensorFlow and JAX (${k}, ${k}, ${co}, ${ci})`;
  const first = parts[0].map((part, i) => (part ? `${exact(part[0][0])} through x[${i}]` : "")).filter(Boolean);
  sayChannels(`${count(ci, "channel")} in, ${co} out: ${count(ci * co / gr, "kernel")}. Each output is the sum over `
    + `its column: every input through its own kernel, plus the bias. PyTorch's weight has the shape ${shape}; `
    + `${others}.`,
    `At row 0, column 0: y[0] = ${first.join(" + ")} + ${exact(layer.bias[0])} = ${exact(output[0][0][0])}.`);
}

function sayChannels(words, sum) {
  say("kernels", words);
  $("channelSum").textContent = sum;
}
