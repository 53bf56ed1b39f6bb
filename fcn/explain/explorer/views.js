// The views of a layer with one channel.

let grids;

function makeGrids() {
  const grid = (section, options) => new Grid($(section).querySelector(".panels"), options);
  const large = { cellMost: 42, width: 440 }, wide = { cellMost: 23, width: Infinity };
  const strip = { cellMost: 34, width: 700, still: true };
  grids = {
    input: grid("stamps", { ...large, onEdit: (x) => change({ x }) }),
    kernel: grid("stamps", { ...large, onEdit: (w) => change({ w }) }),
    sum: grid("stamps", large),
    row: grid("line", strip), taps: grid("line", strip), rowStamps: grid("line", strip), rowSum: grid("line", strip),
    spread: grid("windows"), turned: grid("windows"), output: grid("windows"),
    repeated: grid("repeat"), three: grid("repeat"), convolved: grid("repeat"),
    forward: grid("matrix", wide), back: grid("matrix", wide),
    gradOutput: grid("backward"), gradInput: grid("backward"), gradKernel: grid("backward"),
    counts: grid("overlap", { width: 280 }), phases: grid("overlap", { width: 220 }),
  };
}

const cellsOf = (kind) => ({ ref: (r, c) => ({ [kind]: r * now.sides[kind] + c }) });
const tidy = (text) => text.replace(/ ([×+−]) /g, "\u00a0$1\u00a0"); // sizes do not break
const say = (section, text) => { $(section).querySelector("p").textContent = tidy(text); };
const square = (side) => `${side} × ${side}`;
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;
const stampedCount = () => min(state.n ** 2, state.step === "" ? Infinity : parseInt(state.step, 10) || 0);

function drawStamps() {
  const all = state.n ** 2, step = stampedCount();
  grids.input.show("x: type your own", now.layer.input, cellsOf("input"));
  grids.kernel.show("w, the kernel", now.layer.kernel, cellsOf("weight"));
  const cut = state.p ? ` Padding ${state.p} then cuts the hatched edge off.` : "";
  say("stamps", state.t
    ? `Every input multiplies the kernel by its value and stamps it onto the output, ${count(state.s, "pixel")} from `
      + `its neighbour's stamp. Stamps add where they overlap.${cut}`
    : "An input adds its value, times one weight, to every output whose window covers it.");
  drawSum(step, step < all ? `the sum of ${step} of ${all} stamps` : `y, the sum of all: ${square(now.size)}`);
  drawStampList(step, all);
}

// Return the sum of the first stamps with what padding cuts off, and which cells it keeps.
function frameOf(step) {
  const { layer, size, flat } = now, { n, k } = state, cut = state.t ? layer.padding : 0;
  const uncut = { ...layer, padding: layer.padding - cut, outputPadding: max(0, layer.outputPadding - cut) };
  const side = outputSize(n, k, uncut), frame = Array(side * side).fill(0);
  for (const { input, weight, output } of connections(uncut, [n, n], [k, k], [side, side]))
    if (input < step) frame[output] += flat.input[input] * flat.weight[weight];
  return { values: inRows(frame, side), cut, inside: (r, c) => min(r, c) >= cut && max(r, c) < cut + size };
}

function drawSum(step, title) {
  const { values, cut, inside } = frameOf(step), { size, flat } = now;
  grids.sum.show(title, values, {
    limit: most(flat.output), kind: (r, c) => (inside(r, c) ? "" : "cut"),
    ref: (r, c) => (inside(r, c) ? { output: (r - cut) * size + c - cut } : null),
  });
}

// Show each stamp, where there are few.
function drawStampList(step, all) {
  const { size, flat, result } = now, list = $("stampList"), cell = 112 / size;
  const limit = most(flat.input) * most(flat.weight);
  list.hidden = all > 16 || size > 32;
  if (list.hidden) return;
  const item = '<li><button><canvas width="112" height="112"></canvas></button></li>';
  if (list.children.length !== all) list.innerHTML = item.repeat(all);
  list.querySelectorAll("button").forEach((button, i) => {
    const pen = button.firstChild.getContext("2d"), value = flat.input[i];
    pen.clearRect(0, 0, 112, 112);
    for (const { input, weight, output } of result.links) if (input === i) {
      pen.fillStyle = css(shade(value * flat.weight[weight], limit));
      pen.fillRect(output % size * cell, floor(output / size) * cell, cell - 1, cell - 1);
    }
    button.ariaLabel = `stamp of ${valued("input", i)}`;
    button.ariaPressed = i < step;
    button.tabIndex = i ? -1 : 0;
    button.onclick = () => stampTo(i + 1);
  });
}

function stampTo(step) {
  state.step = step >= state.n ** 2 ? "" : String(step);
  state.at = step ? named("input", step - 1).replace(/[[\]]/g, "") : "";
  draw();
  if (!players.stamps.looping()) writeAddress();
}

// Show the first row of the input and one row of weights: a stamp is a row, and each column adds up.
function drawLine() {
  const { n, k, s, p, o: more, t, w } = state, { layer, size } = now, row = layer.input[0];
  const taps = TAPS[w]?.(k, s) ?? layer.kernel[0], stamps = zeros(n, size);
  for (let i = 0; i < n; i++) for (let o = 0; o < size; o++) {
    const [small, large] = t ? [i, o] : [o, i], tap = (large - small * s + p) / layer.dilation;
    if (Number.isInteger(tap) && tap >= 0 && tap < k) stamps[i][o] = row[i] * taps[tap];
  }
  grids.row.show("x, a column", row.map((value) => [value]));
  grids.taps.show("w", [taps]);
  grids.rowStamps.show(t ? "the stamp of each input, a row" : "what each input adds, a row", stamps);
  const sums = stamps.reduce((sum, line) => sum.map((value, o) => value + line[o]));
  grids.rowSum.show("y, the sum of each column", [sums]);
  say("line", t ? `A row of ${count(n, "input")} becomes ${size}. Each input times the weights is a row, `
    + `${count(s, "output")} further right than the row above${p ? `; padding cut ${edges(p, p - more)}` : ""}.`
    : `A row of ${count(n, "input")} becomes ${size}. Each column holds the products under one window.`);
}

// Show the input as the sliding kernel sees it, with zeros around, and between if transposed.
function drawWindows() {
  const { layer, size } = now, { stride, padding, dilation, transposed } = layer, reach = dilation * (state.k - 1);
  const around = transposed ? reach - padding : padding; // negative: edges are cut off instead
  const apart = transposed ? stride : 1, length = (state.n - 1) * apart + 1; // of the input with its zeros
  const seen = transposed ? size + reach : length + 2 * padding; // by some window
  const origin = max(0, around), from = max(0, -around), side = max(origin + length, from + seen);
  // Along an axis, a cell is the input of number `place`, or a zero.
  const place = (r) => (r >= origin && r < origin + length && (r - origin) % apart === 0 ? (r - origin) / apart : -1);
  const real = (r, c) => place(r) >= 0 && place(c) >= 0, outside = (r) => r < from || r >= from + seen;
  // The window of output y starts at y * step and has a weight every `dilation` cells.
  const step = transposed ? 1 : stride;
  const covers = (y, r) => { const at = r - from - y * step; return at >= 0 && at <= reach && at % dilation === 0; };
  const turn = (i) => (transposed ? state.k - 1 - i : i), after = around + state.o; // at the end
  const cut = around < 0 ? `cut: ${edges(-around, -after)}${after > 0 ? `, ${after} put there` : ""}`
    : `${around} around${state.o ? `, ${state.o} more at the end` : ""}`;
  grids.spread.show(
    transposed ? `x with ${count(apart - 1, "zero")} between, ${cut}` : `x with ${count(around, "zero")} around`,
    zeros(side, side).map((row, r) => row.map((_, c) => (real(r, c) ? layer.input[place(r)][place(c)] : 0))), {
      ref: (r, c) => (real(r, c) ? { input: place(r) * state.n + place(c) } : null),
      kind: (r, c) => (outside(r) || outside(c) ? "cut" : real(r, c) ? "" : "zero"),
      extra: (r, c, { selection: { output } }) =>
        (output !== undefined && covers(floor(output / size), r) && covers(output % size, c) ? "band" : ""),
    });
  grids.turned.show(transposed ? "w, turned by 180°" : "w, not turned",
    layer.kernel.map((row, i) => row.map((_, j) => layer.kernel[turn(i)][turn(j)])),
    { ref: (r, c) => ({ weight: turn(r) * state.k + turn(c) }) });
  grids.output.show("y, the output", now.result.output, cellsOf("output"));
  const spread = dilation > 1 ? ` Its weights lie ${dilation} pixels apart.` : "";
  const between = apart > 1 ? `${count(apart - 1, "zero")} between neighbours and ` : "";
  say("windows", transposed
    ? `The same output by an ordinary convolution of stride 1: put ${between}zeros around, turn the kernel, slide it.`
      + `${spread} Only weights on real inputs count. Libraries do not build the zeros.`
    : `The kernel slides over the padded input, ${count(stride, "pixel")} at a time.${spread} Each output is the sum `
      + "of the products under it. Networks do not turn the kernel.");
}

// Show repeat-then-convolve.
function drawRepeat() {
  const { s, n, k, p, o, d, w, t } = state, fits = t && w === "repeat" && k === s + 2 && p <= 2 && !o && d === 1;
  $("repeat").hidden = !fits;
  if (!fits) return;
  const input = zeros(n * s, n * s).map((row, r) => row.map((_, c) => now.layer.input[floor(r / s)][floor(c / s)]));
  const kernel = THREE.map((a) => THREE.map((b) => a * b));
  const { output } = explore({ transposed: false, input, kernel, padding: 2 - p });
  const difference = most(output.flat().map((value, i) => value - now.flat.output[i]));
  grids.repeated.show("x, every input repeated", input);
  grids.three.show("q: 0.2, 0.3, 0.5 both ways", kernel);
  grids.convolved.show("convolved with q", output);
  say("repeat", `Repeat every input ${s} times each way, then convolve with nine weights. Largest difference from y `
    + `above: ${difference < 1e-12 ? 0 : short(difference)}.`);
}

function drawMatrix() {
  const { matrix, links } = now.result, { input, output, weight } = now.flat, limit = most(weight);
  const transpose = zeros(input.length, output.length);
  for (const link of links) transpose[link.input][link.output] = weight[link.weight];
  const [mine, other] = state.t ? ["Cᵀ", "C"] : ["C", "Cᵀ"];
  // The entries that are not 0, and the row and column of the selection.
  const cells = (selection) => links.map((link) => [link.output, link.input])
    .concat("output" in selection ? input.map((_, i) => [selection.output, i]) : [])
    .concat("input" in selection ? output.map((_, o) => [o, selection.input]) : []);
  grids.forward.show(`y = ${mine} x, with ${mine} ${matrix.length} × ${matrix[0].length}`, matrix,
    { limit, cells, ref: (r, c) => ({ output: r, input: c }) });
  grids.back.show(`dx = ${other} dy: the backward pass`, transpose, {
    limit, cells: (selection) => cells(selection).map(([o, i]) => [i, o]), ref: (r, c) => ({ output: c, input: r }),
  });
  say("matrix", `With x and y each as one column, the layer is a product with a matrix. Each input has a column of `
    + `${mine}, each output a row; one weight repeats along a slanted line. C is the matrix of a convolution. The `
    + `transposed convolution has its transpose, hence the name.`);
}

function drawBackward() {
  const { result, gradOutput } = now, names = ["convolution", "transposed convolution"];
  grids.gradOutput.show("dy, gradient at the output", gradOutput, cellsOf("output"));
  grids.gradInput.show("dx, gradient at the input", result.gradInput, cellsOf("input"));
  grids.gradKernel.show("dw, gradient of the kernel", result.gradKernel, cellsOf("weight"));
  say("backward", `Training starts from dy, how the loss changes with each output (a setting here). Each connection `
    + `carries it back: dy times the weight is added to dx, dy times the input to dw. So dx comes from dy by a `
    + `${names[1 - state.t]} with the same kernel; dw changes the weights.`);
}

function drawOverlap() {
  grids.counts.show("weights that meet at each output", now.result.overlap, cellsOf("output"));
  grids.phases.host.hidden = $("frequency").hidden = !state.t;
  if (state.t) return drawCheckerboard();
  say("overlap", "A convolution can make a checkerboard too: in its gradient, dx in view 6. "
    + "Choose Transposed to see more.");
}

function drawCheckerboard() {
  const { s, k, d } = state, { sums, mean, range, vanishes, even } = constantThrough(now.layer);
  const shown = s * max(1, floor(8 / s));
  grids.phases.show("a constant 1, far from edges",
    zeros(shown, shown).map((row, r) => row.map((_, c) => sums[r % s][c % s])));
  const counts = k % s ? `Stride ${s} does not divide kernel size ${k}: the counts are uneven, in the middle too. `
    : `Stride ${s} divides kernel size ${k}: away from the edges the counts are even. `;
  const ripple = vanishes ? "" : `: its range is ${short(100 * range / abs(mean))} % of its mean`;
  say("overlap", `${d > 1 ? "" : counts}With these weights a constant input `
    + `${even ? "stays constant, so there is no checkerboard" : `leaves a pattern, a checkerboard${ripple}`}.`);
  drawCurve(vanishes);
}

// Draw the gain; zeros between pixels copy a constant to multiples of 1/stride.
function drawCurve(vanishes) {
  const { kernel, dilation, stride } = now.layer, constant = vanishes ? 1 : gainAt(kernel, dilation, 0, 0);
  const gain = (down, across) => gainAt(kernel, dilation, down, across) / constant;
  const upTo = (n) => [...Array(n).keys()], places = upTo(stride - 1).map((i) => (i + 1) / stride);
  const points = upTo(121).map((i) => [i / 240, gain(0, i / 240)]), top = max(1, ...points.map(([, g]) => g));
  const half = places.slice(0, floor(stride / 2)), copies = half.map((f) => [f, gain(0, f)]);
  const X = (f) => 20 + 600 * f, Y = (g) => 160 - 145 * g / top;
  const text = (x, y, words) => `<text x="${x}" y="${y}">${words}</text>`;
  const line = ([f, g]) => `<path class="copy" d="M${X(f)} 12V160"/><circle cx="${X(f)}" cy="${Y(g)}" r="4"/>`;
  const scale = [text(8, Y(1) + 4, 1), text(8, 164, 0), text(160, 177, "1/4"), text(310, 177, "1/2")];
  $("curve").innerHTML = `<path d="M20 12V160H320"/>${scale.join("")}${copies.map(line).join("")}`
    + `<polyline points="${points.map(([f, g]) => [X(f), Y(g).toFixed(1)]).join(" ")}"/>`;
  const list = (gains) => gains.map((g, i) => `${short(g)} at ${i + 1}/${stride}`).join(", ");
  const both = max(0, ...places.flatMap((down) => places.map((across) => gain(down, across))));
  $("gains").textContent = (vanishes ? "The weights sum to 0: a constant vanishes. " : "A constant has gain 1. ")
    + (stride > 1 ? "Zeros between pixels add fast ripples, which the kernel should remove. What it leaves is the "
    + `checkerboard. Across: ${list(copies.map(([, g]) => g))}; down: ${list(half.map((f) => gain(f, 0)))}; `
    + `both ways at once: up to ${short(both)}.` : "Stride 1 puts no zeros between pixels: no copies.");
}

function drawSize() {
  const { n, k, s, p, o, d, t } = state, { size } = now;
  $("formula").textContent = t
    ? "size = (n − 1) × stride − 2 × padding + dilation × (kernel_size − 1) + output_padding + 1"
    : "size = ⌊(n + 2 × padding − dilation × (kernel_size − 1) − 1) / stride⌋ + 1";
  const numbers = t ? `(${n} − 1) × ${s} − 2 × ${p} + ${d} × (${k} − 1) + ${o} + 1`
    : `⌊(${n} + 2 × ${p} − ${d} × (${k} − 1) − 1) / ${s}⌋ + 1`;
  $("numbers").textContent = `= ${numbers} = ${size}`;
  const least = t ? size - o : outputSize(size, k, { ...now.layer, transposed: true });
  if (least < 1) return say("size", ""); // without output padding nothing would be left
  const sizes = s > 1 ? `sizes ${least} ${s > 2 ? "to" : "and"} ${least + s - 1}` : `size ${least}`;
  const choice = s > 1 && o < s ? ` On the way back, output_padding chooses one of them: ${o} gives ${size}.` : "";
  const other = n > least ? `, or with output_padding ${n - least} into ${n}` : "";
  say("size", t ? `A convolution with these settings turns ${sizes} into ${n}.${choice}`
    : `The transposed convolution with these settings turns ${size} into ${least}${other}.`);
}
