// Numbers to start from, and how numbers are read and written.

// Return a repeatable number in [0, 1) that looks random.
const random = (seed, i) => abs(43758.5 * Math.sin(127.1 * seed + 311.7 * i)) % 1;

const THREE = [0.2, 0.3, 0.5]; // the weights of the 3-tap convolution in "repeat"

// One row of a kernel; the kernel is this row times the same as a column.
const TAPS = {
  ones: (k) => Array(k).fill(1),
  bilinear(k) {
    const f = floor((k + 1) / 2), centre = k % 2 ? f - 1 : f - 0.5;
    return TAPS.ones(k).map((_, i) => 1 - abs(i - centre) / f);
  },
  nearest(k, stride) { // every input fills its own stride × stride pixels
    const start = max(0, floor((k - stride) / 2));
    return TAPS.ones(k).map((_, i) => Number(i >= start && i < start + stride));
  },
  repeat(k) { // repeating k - 2 times, then THREE: weight i sums those of THREE that meet there
    if (k < 3) throw new Error("Repeat + q repeats kernel_size − 2 times: make kernel_size 3 or larger.");
    const taps = Array(k).fill(0);
    THREE.forEach((weight, j) => { for (let i = 0; i < k - 2; i++) taps[2 - j + i] += weight; });
    return taps;
  },
};

const NAMES = [...keys(TAPS), "count", "dot", "random"];

// Return whether a text lists as many numbers.
function isList(text, least, largest = least) {
  const values = text.split(",").map(parseNumber);
  return values.length >= least && values.length <= largest && values.every(Number.isFinite);
}

// Return size × size numbers: a fill by name, or a list such as "1,2,3,4".
function fill(text, size, { seed, stride, integers }) {
  const taps = TAPS[text]?.(size, stride), listed = text.split(",").map(parseNumber);
  const values = {
    count: (i) => i + 1,
    dot: (i) => Number(i === floor(size / 2) * (size + 1)),
    random: (i) => (integers ? floor(9 * random(seed, i)) - 4 : ceil(9 * random(seed, i)) / 10),
  };
  const product = (i) => Number((taps[floor(i / size)] * taps[i % size]).toPrecision(12)); // 0.06, not 0.06000…01
  const at = taps ? product : values[text] ?? ((i) => listed[i] || 0);
  return inRows(Array.from({ length: size * size }, (_, i) => at(i)), size);
}

// Return the number that a text such as "−2,5" or "9/16" means, or NaN.
function parseNumber(text) {
  const [top, bottom = "1", ...more] = text.replace("−", "-").replace(",", ".").split("/");
  return top.trim() && bottom.trim() && !more.length ? Number(top) / Number(bottom) : NaN;
}

// Return "9/16" for a fraction with a common denominator, "" for other numbers.
function fraction(value) {
  const whole = (number) => abs(number - round(number)) < 1e-9;
  const bottom = [2, 3, 4, 6, 8, 9, 16, 32, 64, 128, 256].find((number) => whole(value * number));
  return bottom && !whole(value) && abs(value) < 100 ? `${round(value * bottom)}/${bottom}`.replace("-", "−") : "";
}

// Write a number as a fraction or with up to seven decimals.
const exact = (value) => fraction(value) || decimal(value);
const decimal = (value) => (Number(value.toFixed(7)) || 0).toString().replace("-", "−");

// Write a number in little room: as a fraction if it fits, else with few digits, ".56".
function short(value, digits = 3) {
  const whole = fraction(value), text = decimal(Number(value.toPrecision(digits)));
  return whole && whole.length <= digits + 2 ? whole : digits < 3 ? text.replace("0.", ".") : text;
}

// Cut or extend a list of numbers to another size; keep the name of a fill.
function resize(text, size, other) {
  if (NAMES.includes(text)) return text;
  const old = fill(text, size, {});
  return zeros(other, other).map((row, i) => row.map((_, j) => old[i]?.[j] ?? 0)).flat().join(",");
}
