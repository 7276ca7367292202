// Gradient matching by hand: a small SR network, its gradient, the matching loss, and the gradient of that loss with respect to the pixels.
// One function without surroundings, so that its text can also become a worker (see distil.js).  ℓ is the SR loss, L the matching loss.
"use strict";
function srdEngine(side = 32, width = 8) {
  const pad = side + 2, plane = pad * pad, values = 3 * side * side;   // planes have a border of zeros, which nobody writes to
  const shapes = [[width, 1], [width, width], [1, width]];             // [to, from] of the three 3×3 convolutions
  const layers = [];
  let size = 0;
  for (const [to, from] of shapes) { layers.push({to, from, w: size, b: size + 9 * to * from}); size += 9 * to * from + to; }
  const planes = n => new Float64Array(n * plane);

  // ---- random numbers from a seed; no transcendental functions, so every machine draws the same
  function random(seed) {
    let s = (seed * 2654435769 + 1013904223) >>> 0;
    const next = () => { s = (s + 0x6D2B79F5) >>> 0; let t = Math.imul(s ^ s >>> 15, 1 | s); t ^= t + Math.imul(t ^ t >>> 7, 61 | t); return ((t ^ t >>> 14) >>> 0) / 4294967296; };
    next.below = n => Math.floor(next() * n);
    next.shuffle = list => { for (let i = list.length - 1; i > 0; i--) { const j = next.below(i + 1); [list[i], list[j]] = [list[j], list[i]]; } return list; };
    return next;
  }

  // ---- down and up, as PyTorch's bicubic interpolation: with antialias, and without; together one matrix for each axis
  function cubic(from, to, a, wide, renormalise) {
    const rows = [], kernel = t => (t = Math.abs(t), t <= 1 ? ((a + 2) * t - (a + 3)) * t * t + 1 : t < 2 ? (((t - 5) * t + 8) * t - 4) * a : 0);
    for (let i = 0; i < to; i++) {
      const row = new Float64Array(from), centre = (i + .5) * from / to - .5;
      let sum = 0;
      for (let j = Math.floor(centre - 2 * wide); j <= Math.ceil(centre + 2 * wide); j++) {
        if (renormalise && (j < 0 || j >= from)) continue;
        const weight = kernel((j - centre) / wide);
        row[Math.min(from - 1, Math.max(0, j))] += weight; sum += weight;
      }
      rows.push(row.map(w => w / sum));
    }
    return rows;
  }
  const D = cubic(side, side / 2, -.5, 2, true), U = cubic(side / 2, side, -.75, 1, false);
  const M = new Float64Array(side * side);
  for (let i = 0; i < side; i++) for (let j = 0; j < side; j++) for (let k = 0; k < side / 2; k++) M[i * side + j] += U[i][k] * D[k][j];
  const half = new Float64Array(side * side);
  function blur(out, y, transposed) {   // out = M y Mᵀ for each colour, or with the transposed matrix; both are padded planes
    const m = (i, j) => transposed ? M[j * side + i] : M[i * side + j];
    for (let c = 0; c < 3; c++) {
      const at = c * plane + pad + 1;
      for (let i = 0; i < side; i++) for (let x = 0; x < side; x++) {
        let sum = 0;
        for (let j = Math.max(0, i - 9); j < Math.min(side, i + 10); j++) sum += m(i, j) * y[at + j * pad + x];
        half[i * side + x] = sum;
      }
      for (let i = 0; i < side; i++) for (let x = 0; x < side; x++) {
        let sum = 0;
        for (let j = Math.max(0, x - 9); j < Math.min(side, x + 10); j++) sum += m(x, j) * half[i * side + j];
        out[at + i * pad + x] = sum;
      }
    }
    return out;
  }

  // ---- convolutions of padded planes
  function conv(out, input, w, layer, bias, add) {   // out[o] (+)= bias[o] + Σ w[o,i] ∗ input[i]
    for (let o = 0; o < layer.to; o++) {
      const start = bias ? bias[layer.b + o] : 0, base = o * plane;
      if (!add) for (let y = 1; y <= side; y++) out.fill(start, base + y * pad + 1, base + y * pad + 1 + side);
      for (let i = 0; i < layer.from; i++) {
        const k = layer.w + 9 * (o * layer.from + i);
        const w0 = w[k], w1 = w[k + 1], w2 = w[k + 2], w3 = w[k + 3], w4 = w[k + 4], w5 = w[k + 5], w6 = w[k + 6], w7 = w[k + 7], w8 = w[k + 8];
        for (let y = 1; y <= side; y++) {
          let q = base + y * pad + 1, b = i * plane + y * pad + 1, a = b - pad, c = b + pad;
          for (const end = q + side; q < end; q++, a++, b++, c++)
            out[q] += w0 * input[a - 1] + w1 * input[a] + w2 * input[a + 1] + w3 * input[b - 1] + w4 * input[b] + w5 * input[b + 1] + w6 * input[c - 1] + w7 * input[c] + w8 * input[c + 1];
        }
      }
    }
  }
  function turned(w) {   // the weights of the convolutions that lead back: `to` and `from` swapped, kernels turned by 180°
    const back = new Float64Array(size);
    for (const {to, from, w: at} of layers)
      for (let o = 0; o < to; o++) for (let i = 0; i < from; i++) for (let t = 0; t < 9; t++) back[at + 9 * (i * to + o) + t] = w[at + 9 * (o * from + i) + 8 - t];
    return back;
  }
  const backwards = layers.map(({to, from, w, b}) => ({to: from, from: to, w, b}));
  function weightGradient(g, delta, input, layer) {   // g += what `delta` at the output says about the weights and biases
    for (let o = 0; o < layer.to; o++) {
      let sum = 0;
      for (let y = 1; y <= side; y++) for (let q = o * plane + y * pad + 1, end = q + side; q < end; q++) sum += delta[q];
      g[layer.b + o] += sum;
      for (let i = 0; i < layer.from; i++) {
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0, s8 = 0;
        for (let y = 1; y <= side; y++) {
          let q = o * plane + y * pad + 1, b = i * plane + y * pad + 1, a = b - pad, c = b + pad;
          for (const end = q + side; q < end; q++, a++, b++, c++) {
            const d = delta[q];
            s0 += d * input[a - 1]; s1 += d * input[a]; s2 += d * input[a + 1]; s3 += d * input[b - 1]; s4 += d * input[b];
            s5 += d * input[b + 1]; s6 += d * input[c - 1]; s7 += d * input[c]; s8 += d * input[c + 1];
          }
        }
        const k = layer.w + 9 * (o * layer.from + i);
        g[k] += s0; g[k + 1] += s1; g[k + 2] += s2; g[k + 3] += s3; g[k + 4] += s4; g[k + 5] += s5; g[k + 6] += s6; g[k + 7] += s7; g[k + 8] += s8;
      }
    }
  }

  // ---- the network: what bicubic enlargement gives, and a correction of it by three convolutions; each colour by itself, with the same weights
  const a1 = planes(width), a2 = planes(width), out = planes(1), delta = planes(1), d2 = planes(width), d1 = planes(width);
  const t1 = planes(width), t2 = planes(width), tout = planes(1), tdelta = planes(1), td2 = planes(width), td1 = planes(width), back = planes(3), low = planes(3), errors = planes(3);
  const relu = a => { for (let q = 0; q < a.length; q++) if (a[q] < 0) a[q] = 0; };
  const gate = (d, a) => { for (let q = 0; q < d.length; q++) if (a[q] <= 0) d[q] = 0; };   // the derivative of ReLU is 0 or 1, its second derivative 0

  function error(w, {x, y}) {   // out = ψ(down(y)) − y, of one colour; the result is its share of ℓ, eq. (4)
    conv(a1, x, w, layers[0], w); relu(a1);
    conv(a2, a1, w, layers[1], w); relu(a2);
    conv(out, a2, w, layers[2], w);
    let sum = 0;
    for (let q = 0; q < out.length; q++) { out[q] += x[q] - y[q]; sum += out[q] * out[q]; }
    return sum / values;
  }
  function deltas(turnedW) {   // δ at the output, and behind the layers before it
    for (let q = 0; q < out.length; q++) delta[q] = 2 * out[q] / values;
    conv(d2, delta, turnedW, backwards[2]); gate(d2, a2);
    conv(d1, d2, turnedW, backwards[1]); gate(d1, a1);
  }
  function gradient(w, windows, turnedW = turned(w)) {   // ∇ℓ of a batch, as one list of numbers
    const g = new Float64Array(size);
    g.loss = 0;
    for (const window of windows)
      for (const colour of window.colours) {
        g.loss += error(w, colour) / windows.length;
        deltas(turnedW);
        weightGradient(g, delta, a2, layers[2]); weightGradient(g, d2, a1, layers[1]); weightGradient(g, d1, colour.x, layers[0]);
      }
    if (windows.length > 1) for (let k = 0; k < size; k++) g[k] /= windows.length;
    return g;
  }

  // ---- the matching loss L of two gradients, and v = ∂L/∂s
  function cosine(s, r, from, to, v) {   // 1 − cos of two pieces; adds its derivative to v
    let sr = 0, ss = 0, rr = 0;
    for (let k = from; k < to; k++) { sr += s[k] * r[k]; ss += s[k] * s[k]; rr += r[k] * r[k]; }
    const both = Math.sqrt(ss * rr);
    if (!(both > 1e-30)) return 1;
    for (let k = from; k < to; k++) v[k] -= r[k] / both - sr / both * s[k] / ss;
    return 1 - sr / both;
  }
  const objectives = {
    whole: (s, r, v) => cosine(s, r, 0, size, v),                                   // eq. (3)
    layerwise(s, r, v) {                                                            // one cosine for each filter, summed
      let sum = 0;
      for (const {to, from, w} of layers) for (let o = 0; o < to; o++) sum += cosine(s, r, w + 9 * from * o, w + 9 * from * (o + 1), v);
      return sum;
    },
  };

  // The gradient of L with respect to the pixels.  With v held, it is that of ⟨∇ℓ(w), v⟩, the derivative of ℓ when the weights move along v.
  // The order of derivatives does not matter: so take ∇ℓ with respect to the pixels, and ask how it changes when the weights move along v.
  // Every line of the forward and backward pass has a line for its rate of change (t…) below it: exact, no finite differences.
  function match(w, window, real, objective) {
    const turnedW = turned(w), v = new Float64Array(size), s = gradient(w, [window], turnedW), L = objectives[objective](s, real, v), turnedV = turned(v);
    window.colours.forEach((colour, c) => {
      error(w, colour); deltas(turnedW);
      conv(t1, colour.x, v, layers[0], v); gate(t1, a1);
      conv(t2, a1, v, layers[1], v); conv(t2, t1, w, layers[1], null, true); gate(t2, a2);
      conv(tout, a2, v, layers[2], v); conv(tout, t2, w, layers[2], null, true);
      for (let q = 0; q < plane; q++) tdelta[q] = 2 * tout[q] / values;
      conv(td2, tdelta, turnedW, backwards[2]); conv(td2, delta, turnedV, backwards[2], null, true); gate(td2, a2);
      conv(td1, td2, turnedW, backwards[1]); conv(td1, d2, turnedV, backwards[1], null, true); gate(td1, a1);
      const mine = back.subarray(c * plane, (c + 1) * plane);
      conv(mine, td1, turnedW, backwards[0]); conv(mine, d1, turnedV, backwards[0], null, true);
      for (let q = 0; q < plane; q++) mine[q] += tdelta[q];                           // the network adds its input to its output
      errors.set(tdelta, c * plane);
    });
    blur(low, back, true);                                                          // x = M y Mᵀ
    for (let q = 0; q < low.length; q++) low[q] -= errors[q];                       // the error is out − y
    return {L, s, pixels: low};
  }

  // ---- windows: {y, x} with y the sharp pixels in 0..1 and x = up(down(y)), both as padded planes
  function windowOf(pixels) {   // from [3,side,side]
    const y = planes(3);
    for (let c = 0; c < 3; c++) for (let i = 0; i < side; i++) for (let j = 0; j < side; j++) y[c * plane + (i + 1) * pad + j + 1] = pixels[(c * side + i) * side + j];
    return inColours({y, x: blur(planes(3), y)});
  }
  function pixelsOf({y}) {
    const pixels = new Float32Array(values);
    for (let c = 0; c < 3; c++) for (let i = 0; i < side; i++) for (let j = 0; j < side; j++) pixels[(c * side + i) * side + j] = y[c * plane + (i + 1) * pad + j + 1];
    return pixels;
  }
  const inColours = ({y, x}) => ({y, x, colours: [0, 1, 2].map(c => ({y: y.subarray(c * plane, (c + 1) * plane), x: x.subarray(c * plane, (c + 1) * plane)}))});
  const mirror = ({y, x}) => inColours({y: mirrored(y), x: mirrored(x)});
  function mirrored(a) {
    const b = planes(3);
    for (let row = 0; row < 3 * pad; row++) for (let j = 0; j < pad; j++) b[row * pad + j] = a[row * pad + pad - 1 - j];
    return b;
  }
  const hard = ({y, x}) => { let sum = 0; for (let q = 0; q < y.length; q++) sum += (x[q] - y[q]) ** 2; return sum / values; };

  // ---- Adam, and training, eq. (1)
  function adam(n, lr) {
    const m = new Float64Array(n), v = new Float64Array(n);
    let a = 1, b = 1;
    return (w, g) => {
      a *= .9; b *= .999;
      for (let k = 0; k < n; k++) {
        m[k] = .9 * m[k] + .1 * g[k]; v[k] = .999 * v[k] + .001 * g[k] * g[k];
        w[k] -= lr * (m[k] / (1 - a)) / (Math.sqrt(v[k] / (1 - b)) + 1e-8);
      }
    };
  }
  function fresh(draw) {   // PyTorch's first weights: uniform between ±1/√(inputs of the filter)
    const w = new Float64Array(size);
    for (const {to, from, w: at, b} of layers) for (let k = at; k < b + to; k++) w[k] = (2 * draw() - 1) / Math.sqrt(9 * from);
    return w;
  }
  function* train(windows, seed, steps, batch) {   // yields [step, weights] before each step
    const draw = random(seed), w = fresh(draw), move = adam(size, 3e-3), both = [windows, windows.map(mirror)];
    for (let step = 0; step < steps; step++) {
      yield [step, w];
      move(w, gradient(w, Array.from({length: batch}, () => both[step % 2][draw.below(windows.length)])));
    }
    yield [steps, w];
  }
  const psnr = (w, windows) => -10 * Math.log10(windows.reduce((sum, one) => sum + (w ? one.colours.reduce((a, colour) => a + error(w, colour), 0) : hard(one)), 0) / windows.length);

  // ---- the whole of it, in slices; every yield is a piece of news
  const RATE = .006, SEEDS = 3;
  let held = null;   // what the first part leaves for the second
  function* distil({windows, seed, objective, start, rounds, ages, trainings, rivalSteps}) {
    const draw = random(seed), all = windows.map(windowOf), real = all.slice(0, all.length / 2), heldOut = all.slice(real.length);
    const networks = [], last = ages[ages.length - 1];
    for (let k = 0; k < trainings; k++)
      for (const [step, w] of train(real, seed * 16 + k, last, 2)) {
        if (ages.includes(step)) networks.push(w.slice());
        yield {stage: "networks", done: (k + step / last) / trainings};
      }
    const bank = [];
    for (const w of networks) { bank.push(gradient(w, real)); yield {stage: "bank", done: bank.length / networks.length}; }
    const pool = networks.length - ages.length;   // the networks of the last training only check
    const first = start === "noise" ? windowOf(Float64Array.from({length: values}, () => draw())) :
      start === "random" ? real[draw.below(real.length)] : real.reduce((a, b) => hard(b) > hard(a) ? b : a);
    const image = windowOf(pixelsOf(first)), move = adam(image.y.length, RATE), unused = new Float64Array(size);
    const unseen = () => networks.slice(pool).map((w, k) => objectives[objective](gradient(w, [image]), bank[pool + k], unused));
    held = {real, heldOut, first, image, seed, rivalSteps};
    yield {stage: "start", image, pool};
    for (let step = 0; step < rounds * pool; step++) {   // eq. (2)
      const k = step % pool, news = {stage: "distil", step, network: k, of: rounds * pool, image};
      if (k === 0) news.unseen = unseen();
      const {L, pixels} = match(networks[k], image, bank[k], objective);
      move(image.y, pixels);
      for (let q = 0; q < image.y.length; q++) image.y[q] = Math.min(1, Math.max(0, image.y[q]));
      blur(image.x, image.y);
      yield {...news, L};
    }
    yield {stage: "distilled", image, unseen: unseen()};
  }
  function* rivals() {   // the same networks, trained on one window each; and on all
    const {real, heldOut, first, image, seed, rivalSteps} = held, draw = random(seed + 7919), scores = {start: [], distilled: [], random: [], all: []};
    const now = windowOf(pixelsOf(image));
    for (let k = 0; k < SEEDS; k++)
      for (const [name, windows] of Object.entries({start: [first], distilled: [now], random: [real[draw.below(real.length)]], all: real})) {
        let made;
        for (const [step, w] of train(windows, seed * 16 + 8 + k, rivalSteps, 1)) {
          made = w;
          yield {stage: "train", done: (k + (Object.keys(scores).indexOf(name) + step / rivalSteps) / 4) / SEEDS};
        }
        scores[name].push(psnr(made, heldOut));
      }
    yield {stage: "trained", bicubic: psnr(null, heldOut), scores, heldOut: heldOut.length, real: real.length, steps: rivalSteps};
  }

  // Answers the messages of a page: {distil: …}, {train: true}, {pause: true or false}.  After each slice the page has its turn.
  function serve(port, slice = 40) {
    let job = null, paused = false, waiting = false;
    const tell = news => {
      const last = news[news.length - 1];
      port.postMessage({news: news.map(({image, ...one}) => one), image: last.image && pixelsOf(last.image)});
    };
    function tick() {
      waiting = false;
      if (!job || paused) return;
      try {
        const until = performance.now() + slice, news = [];
        do {
          const {value, done} = job.next();
          if (done) { job = null; break; }
          if (["networks", "bank", "train"].includes(value.stage)) news.pop();   // of progress the last is enough
          news.push(value);
        } while (performance.now() < until);
        if (news.length) tell(news);
        later();
      } catch (error) { job = null; port.postMessage({failed: String(error?.message ?? error)}); }
    }
    function later() { if (!waiting) { waiting = true; setTimeout(tick); } }
    port.onmessage = ({data}) => {
      if (data.distil) job = distil(data.distil);
      if (data.train) job = rivals();
      if (data.stop) job = null;
      paused = Boolean(data.pause);
      later();
    };
  }
  return {side, width, size, values, random, windowOf, pixelsOf, gradient, match, distil, rivals, serve};
}
