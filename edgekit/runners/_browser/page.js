// One workload in one page of a fresh browser: what edgekit/agent/worker.py is on a device with Python.
//
// `edgekit.runtime(task)` loads LiteRT.js, `edgekit.load(task)` the model; `edgekit.latency(task)` and
// `edgekit.outputs(task)` run it. Inputs come from, and outputs go to, the server that served this page: as bytes, one
// call of the model after another. Paths are relative: the first part of the page's own path is the server's secret.
import { loadAndCompile, loadLiteRt, supportsFeature, Tensor } from "@litertjs/core";

const KINDS = { float32: Float32Array, int32: Int32Array, uint8: Uint8Array };
let model = null;

const timed = async (action) => {
  const start = performance.now();
  const value = await action();
  return [value, performance.now() - start];
};

const described = (details) =>
  details.map(({ name, dtype, shape }) => ({ name, dtype, shape: Array.from(shape) }));

/** The WebAssembly, with threads where they were asked for and the browser allows them. */
async function runtime({ threads }) {
  const threaded = threads > 1 && crossOriginIsolated && (await supportsFeature("threads"));
  const [, ms] = await timed(() => loadLiteRt("litertjs/core/wasm/", { threads: threaded }));
  return {
    init_ms: ms,
    threads: threaded ? threads : 1,
    isolated: crossOriginIsolated,
    webgpu: "gpu" in navigator && (await navigator.gpu.requestAdapter()) !== null,
    relaxed_simd: await supportsFeature("relaxedSimd"),
  };
}

async function load({ threads, accelerator }) {
  const cpuOptions = { numThreads: threads };
  const [compiled, ms] = await timed(() => loadAndCompile("model.tflite", { accelerator, cpuOptions }));
  model = compiled;
  return {
    load_ms: ms,
    inputs: described(model.getInputDetails()),
    outputs: described(model.getOutputDetails()),
    accelerated: model.isFullyAccelerated,
  };
}

/** The bytes of an input, cut into calls. */
async function callsOf(set) {
  const details = model.getInputDetails();
  const parts = await Promise.all(
    details.map(async ({ name, dtype, shape }) => {
      const answer = await fetch(`inputs/${encodeURIComponent(set)}/${encodeURIComponent(name)}`);
      if (!answer.ok) throw new Error(`no input '${name}' in the set '${set}'`);
      const values = new KINDS[dtype](await answer.arrayBuffer());
      const size = shape.reduce((product, n) => product * n, 1);
      return { dtype, shape: Array.from(shape), values, size, calls: values.length / size };
    }),
  );
  const calls = parts.length ? parts[0].calls : 0;
  const call = (index) =>
    parts.map(({ values, size, shape }) => new Tensor(values.slice(index * size, (index + 1) * size), shape));
  return { calls, call };
}

const release = (tensors) => tensors.forEach((tensor) => tensor.delete());

/** One inference, until its outputs can be read: on a graphics processor `run` returns before it has computed. */
async function infer(tensors) {
  let outputs = null;
  const [found, ms] = await timed(async () => {
    outputs = await model.run(tensors);
    return Promise.all(outputs.map((tensor) => tensor.data()));
  });
  release(outputs);
  return [found, ms];
}

async function latency({ set, warmup_runs, min_runs, max_runs, min_seconds, max_seconds }) {
  const { call } = await callsOf(set);
  const tensors = call(0);
  const once = async () => (await infer(tensors))[1];
  const first = await once();
  const warmup = [];
  while (warmup.length < warmup_runs - 1) warmup.push(await once());
  const samples = [];
  const begin = performance.now();
  for (;;) {
    samples.push(await once());
    const seconds = (performance.now() - begin) / 1000;
    if (samples.length >= max_runs || seconds >= max_seconds) break;
    if (samples.length >= min_runs && seconds >= min_seconds) break;
  }
  release(tensors);
  return { first_inference_ms: first, warmup_ms: warmup, samples_ms: samples };
}

/** Computes every call of a set and sends the outputs to the server in parts. */
async function outputs({ set }) {
  const { calls, call } = await callsOf(set);
  const details = model.getOutputDetails();
  let kept = details.map(() => []);
  let bytes = 0;
  let first = null;
  const flush = async () => {
    for (const [place, { name }] of details.entries()) {
      const answer = await fetch(`outputs/${encodeURIComponent(set)}/${encodeURIComponent(name)}`, {
        method: "POST",
        body: new Blob(kept[place]),
      });
      if (!answer.ok) throw new Error(`the output '${name}' was refused: ${answer.status}`);
    }
    kept = details.map(() => []);
    bytes = 0;
  };
  for (let index = 0; index < calls; index += 1) {
    const tensors = call(index);
    const [found, ms] = await infer(tensors);
    first ??= ms;
    found.forEach((array, place) => {
      kept[place].push(array);
      bytes += array.byteLength;
    });
    release(tensors);
    if (bytes > 1 << 22) await flush();
  }
  await flush();
  return { first_inference_ms: first, calls };
}

window.edgekit = { runtime, load, latency, outputs };
document.documentElement.dataset.ready = "yes";
