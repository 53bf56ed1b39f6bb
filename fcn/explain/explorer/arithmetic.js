"use strict";
const { abs, ceil, floor, max, min, round } = Math, { assign, entries, fromEntries, keys } = Object;

// What the layer computes, without any drawing. `explore` is all that a test needs.

// Return the number of outputs along one axis, as PyTorch does.
function outputSize(n, k, { transposed, stride: s, padding: p, outputPadding: o, dilation: d }) {
  const span = d * (k - 1) + 1; // pixels from the kernel's first weight to its last
  return transposed ? (n - 1) * s - 2 * p + span + o : floor((n + 2 * p - span) / s) + 1;
}

/**
 * List all {input, weight, output}, as positions in reading order, that meet in the layer.
 *
 * One relation defines both layers, along each axis: large = small * stride + tap * dilation - padding.
 * A convolution goes from large (input) to small (output), the transposed one from small to large.
 */
function connections({ transposed, stride, padding, dilation }, inSize, kernelSize, outSize) {
  const [[rows, columns], [height, width]] = transposed ? [inSize, outSize] : [outSize, inSize];
  const place = (small, tap) => small * stride + tap * dilation - padding, links = [];
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++)
    for (let a = 0; a < kernelSize[0]; a++) for (let b = 0; b < kernelSize[1]; b++) {
      const y = place(i, a), x = place(j, b);
      if (y < 0 || y >= height || x < 0 || x >= width) continue;
      const small = i * columns + j, large = y * width + x, weight = a * kernelSize[1] + b;
      links.push(transposed ? { input: small, weight, output: large } : { input: large, weight, output: small });
    }
  return links;
}

// Return [rows, columns] of a nested array of numbers, or throw an Error.
function shapeOf(name, values) {
  const good = Array.isArray(values) && values.length && values.every((row) =>
    Array.isArray(row) && row.length && row.length === values[0].length && row.every(Number.isFinite));
  if (!good) throw new Error(`${name} must be rows of numbers, all of one length.`);
  return [values.length, values[0].length];
}

// Say how many places are cut off along an axis; output padding keeps some of those at the end.
const edges = (start, end) => (start === end ? `${start} off both ends`
  : `${start} off the start and ${max(0, end)} off the end`);

// Throw an Error that explains why there is no such layer; n inputs, k weights, `size` outputs along an axis.
function check({ transposed, stride, padding, outputPadding, dilation }, n, k, size) {
  const fail = (words) => { throw new Error(words); }, span = dilation * (k - 1) + 1;
  const values = { stride, dilation, padding, "output padding": outputPadding };
  const least = { stride: 1, dilation: 1, padding: 0, "output padding": 0 };
  for (const [name, value] of entries(values))
    if (!Number.isInteger(value) || value < least[name])
      fail(`The ${name} must be a whole number of at least ${least[name]}, not ${value}.`);
  if (!transposed && outputPadding) fail("A convolution has no output padding: set it to 0.");
  if (transposed && outputPadding >= max(stride, dilation))
    fail(`The output padding (${outputPadding}) must be smaller than the stride (${stride}) `
      + `or the dilation (${dilation}).`);
  if (size < 1) fail(transposed
    ? `Nothing would be left: the stamps cover ${(n - 1) * stride + span} pixels, and padding cuts `
    + `${edges(padding, padding - outputPadding)}. Make the padding smaller or the kernel larger.`
    : `The kernel does not fit: it spans ${span} pixels, and the input has ${n + 2 * padding} with its padding. Make `
    + `the kernel smaller or the input larger.`);
}

const zeros = (rows, columns) => Array.from({ length: rows }, () => Array(columns).fill(0));
const inRows = (flat, columns) =>
  zeros(flat.length / columns, columns).map((row, i) => row.map((_, j) => flat[i * columns + j]));

/**
 * Return all numbers of a layer as PyTorch's conv2d and conv_transpose2d have them, or throw an Error
 * that explains an impossible setting. The input and the kernel are nested rows: one channel, no bias.
 * For layers with channels, see `exploreChannels`.
 *
 * Arrays are nested rows; gradOutput is ones unless given. matrix has a row for each output, a column
 * for each input, in reading order; size is [rows, columns]; links lists the connections.
 */
function explore(given) {
  if (Array.isArray(given.kernel?.[0]?.[0])) return exploreChannels(given);
  const { transposed, input, kernel, stride = 1, padding = 0, outputPadding = 0, dilation = 1 } = given;
  let { gradOutput } = given;
  const layer = { transposed, stride, padding, outputPadding, dilation };
  const inSize = shapeOf("input", input), kernelSize = shapeOf("kernel", kernel);
  const size = inSize.map((n, axis) => outputSize(n, kernelSize[axis], layer));
  size.forEach((side, axis) => check(layer, inSize[axis], kernelSize[axis], side));
  gradOutput ??= zeros(...size).map((row) => row.fill(1));
  if (!same(shapeOf("gradOutput", gradOutput), size))
    throw new Error(`gradOutput must be ${size.join(" × ")}, like the output.`);
  const x = input.flat(), w = kernel.flat(), dy = gradOutput.flat();
  const links = connections(layer, inSize, kernelSize, size), matrix = zeros(dy.length, x.length);
  const [output, overlap, dx, dw] = [dy, dy, x, w].map(({ length }) => Array(length).fill(0));
  for (const { input: i, weight: j, output: o } of links) {
    output[o] += x[i] * w[j];
    overlap[o] += 1;
    matrix[o][i] = w[j];
    dx[i] += w[j] * dy[o];
    dw[j] += x[i] * dy[o];
  }
  return {
    output: inRows(output, size[1]), overlap: inRows(overlap, size[1]), matrix, size, links,
    gradInput: inRows(dx, inSize[1]), gradKernel: inRows(dw, kernelSize[1]),
  };
}

/**
 * The same for a layer with channels: input [in][rows][columns]; kernel as PyTorch keeps it, transposed
 * [in][out / groups][rows][columns], a convolution's [out][in / groups][rows][columns]; bias [out].
 *
 * parts[out][in] is what one input channel adds to one output channel, null if no kernel joins them.
 */
function exploreChannels({ input, kernel, bias, groups = 1, gradOutput, ...layer }) {
  const inputs = input.length, outputs = layer.transposed ? kernel[0].length * groups : kernel.length;
  for (const [name, count] of [["input", inputs], ["output", outputs]])
    if (count % groups) throw new Error(`groups (${groups}) must divide the number of ${name} channels (${count}).`);
  const [rows, columns] = layer.transposed ? [inputs, outputs / groups] : [outputs, inputs / groups];
  if (kernel.length !== rows || kernel.some((row) => row.length !== columns))
    throw new Error(`The kernel must have ${rows} × ${columns} channels, for ${inputs} in, ${outputs} out and `
      + `groups ${groups}.`);
  for (const [name, values] of entries({ bias, gradOutput }))
    if (values && values.length !== outputs)
      throw new Error(`${name} must have an entry for each of the ${outputs} output channels, not ${values.length}.`);
  const joined = (i, o) => floor(i * groups / inputs) === floor(o * groups / outputs);
  const pair = (i, o) => (layer.transposed ? kernel[i][o % (outputs / groups)] : kernel[o][i % (inputs / groups)]);
  const each = (count, get) => Array.from({ length: count }, (_, i) => get(i));
  const found = each(outputs, (o) => each(inputs, (i) =>
    (joined(i, o) ? explore({ ...layer, input: input[i], kernel: pair(i, o), gradOutput: gradOutput?.[o] }) : null)));
  const parts = found.map((row) => row.map((one) => one?.output ?? null));
  const output = parts.map((row, o) => total(row).map((line) => line.map((value) => value + (bias?.[o] ?? 0))));
  return { output, parts, size: [output[0].length, output[0][0].length],
    gradInput: each(inputs, (i) => total(found.map((row) => row[i]?.gradInput))),
    gradKernel: kernel.map((row, a) => row.map((_, b) => (layer.transposed
      ? found[floor(a * groups / inputs) * (outputs / groups) + b][a]
      : found[a][floor(a * groups / outputs) * (inputs / groups) + b]).gradKernel)) };
}

// Return the sum of grids of one size; null stands for zeros.
const total = (grids) =>
  grids.filter(Boolean).reduce((a, b) => a.map((row, r) => row.map((value, c) => value + b[r][c])));
window.explore = explore;

// Return what a constant input of 1 becomes far from the edges, where it repeats.
function phaseSums(kernel, stride, dilation) {
  const sums = zeros(stride, stride);
  kernel.forEach((row, a) => row.forEach((weight, b) => {
    sums[(a * dilation) % stride][(b * dilation) % stride] += weight;
  }));
  return sums;
}

/**
 * Return what a constant input of 1 becomes far from the edges: `sums`, where it repeats, their mean and range;
 * `vanishes`, if the weights sum to 0; `even`, if there is no checkerboard. What is less than a thousandth of the
 * mean is taken for rounding: a quarter of a grey level.
 */
function constantThrough({ kernel, stride, dilation }) {
  const sums = phaseSums(kernel, stride, dilation), flat = sums.flat(), largest = most(kernel.flat());
  const mean = flat.reduce((a, b) => a + b) / flat.length, range = max(...flat) - min(...flat);
  const vanishes = abs(mean) <= 1e-6 * largest;
  return { sums, mean, range, vanishes, even: range <= 1e-3 * (vanishes ? largest : abs(mean)) };
}

// Return |H| of a kernel at a frequency down and one across, in cycles per pixel.
function gainAt(kernel, dilation, down, across) {
  const turn = (i, j) => 2 * Math.PI * dilation * (i * down + j * across);
  const sum = (wave) => kernel.reduce((total, row, i) =>
    row.reduce((part, weight, j) => part + weight * wave(turn(i, j)), total), 0);
  return Math.hypot(sum(Math.cos), sum(Math.sin));
}
