// The same layer in the code of PyTorch, TensorFlow and JAX.

function listed(values) {
  const rows = values.map((row) => `[${row.map((v) => (Number.isInteger(v) ? `${v}.` : v)).join(", ")}]`);
  return `torch.tensor(\n    [${rows.join(",\n     ")}])`;
}

function kernelCode() {
  const { k, w } = state, f = floor((k + 1) / 2);
  if (w === "ones") return `kernel = torch.ones(${k}, ${k})`;
  if (w !== "bilinear") return `kernel = ${listed(now.layer.kernel)}`;
  return `f = ${f}  # factor, (kernel_size + 1) // 2
centre = ${k % 2 ? f - 1 : f - 0.5}
tent = 1 - (torch.arange(${k}) - centre).abs() / f
kernel = tent[:, None] * tent`;
}

function torchCode() {
  const { n, k, s, p, o, d, t, x } = state;
  return `import torch
from torch import nn

x = ${x === "ones" ? `torch.ones(${n}, ${n})` : listed(now.layer.input)}
${kernelCode()}

layer = nn.${t ? "ConvTranspose2d" : "Conv2d"}(
    1, 1, kernel_size=${k}, stride=${s}, padding=${p},${t ? ` output_padding=${o},` : ""} dilation=${d}, bias=False
)
layer.weight.data[0, 0] = kernel
print(layer(x[None, None])[0, 0])`;
}

// Return what SAME and VALID mean here: [size, rows cut off or padded at the start].
function paddingNames() {
  const { n, k, s, d, t } = state, span = d * (k - 1) + 1, half = (total) => floor(max(0, total) / 2),
    size = ceil(n / s);
  return t ? { SAME: [n * s, half(span - s)], VALID: [(n - 1) * s + max(span, s), 0] }
    : { SAME: [size, half((size - 1) * s + span - n)], VALID: [floor((n - span) / s) + 1, 0] };
}

function tensorflowCode() {
  const { n, k, s, p, o, d, t } = state, { size } = now;
  const options = `strides=${s}, padding=[[0, 0], [${p}, ${p}], [${p}, ${p}], [0, 0]], dilations=${d}`;
  if (t && o >= s) return `# Not in one call: a convolution of stride ${s} does not shrink ${size} to ${n}.`;
  const note = t && d > 1 ? "; on a CPU TensorFlow refuses dilation of a transposed layer" : "";
  return `# x: (1, ${n}, ${n}, 1), w: (${k}, ${k}, 1, 1)${note}
y = tf.nn.${t ? `conv2d_transpose(x, w, output_shape=[1, ${size}, ${size}, 1],` : "conv2d(x, w,"}
    ${options})`;
}

function jaxCode() {
  const { n, k, s, p, o, d, t } = state, before = d * (k - 1) - p;
  const pair = t ? `(${before}, ${before + o})` : `(${p}, ${p})`;
  return `# x: (1, ${n}, ${n}, 1), w: (${k}, ${k}, 1, 1)
y = jax.lax.${t ? "conv_transpose" : "conv_general_dilated"}(x, w, ${t ? "" : "window_"}strides=(${s}, ${s}),
    padding=[${pair}, ${pair}], rhs_dilation=(${d}, ${d}),
    ${t ? "transpose_kernel=True)  # else the kernel is not turned" : 'dimension_numbers=("NHWC", "HWIO", "NHWC"))'}`;
}

function drawCode() {
  const libraries = { PyTorch: torchCode, TensorFlow: tensorflowCode, JAX: jaxCode };
  for (const [name, code] of entries(libraries)) $(name).textContent = code();
  const { t, p } = state, about = entries(paddingNames()).map(([name, [size, start]]) => {
    if (size === now.size && start === p) return `"${name}" is this layer`;
    if (size < 1) return `"${name}" is impossible here`;
    const does = t ? "cuts" : "pads";
    return `"${name}" is another layer: it gives ${square(size)} and ${does} ${count(start, "row")} at the start, `
      + `where this layer ${does} ${p}`;
  });
  const more = t ? " JAX's padding is the zeros around in view 3." : "";
  say("code", `TensorFlow's and Keras' padding: ${about.join("; ")}.${more}`);
}
