// Compressed tables that stand in the page, opened when they are asked for.

const opened = new Map();

/** The names of the blocks in the page. */
export function blockElements() {
  const found = new Map();
  for (const element of document.querySelectorAll("script[data-block]")) {
    found.set(element.dataset.block, element);
  }
  return found;
}

const elements = blockElements();

/** Whether the page holds a block. */
export const has = (name) => elements.has(name);

/** A block once it is open, else undefined. */
export const ready = (name) => {
  const state = opened.get(name);
  return state?.value;
};

/** Opens a block: its header's fields, and its columns by name. Null where there is none. */
export function open(name) {
  if (!elements.has(name)) return Promise.resolve(null);
  let state = opened.get(name);
  if (!state) {
    state = {};
    state.promise = read(elements.get(name).textContent).then((value) => (state.value = value));
    opened.set(name, state);
  }
  return state.promise;
}

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return bytes;
}

async function read(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return table(await new Response(stream).arrayBuffer());
}

const KINDS = {
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, i2: Int16Array, i4: Int32Array, f4: Float32Array,
};
const MISSING = -32768;

function table(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const { columns: told, ...more } = JSON.parse(
    new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const columns = {};
  for (const [name, about] of Object.entries(told)) {
    const numbers = new KINDS[about.type](buffer, 4 + length + about.at, about.n);
    columns[name] = { numbers, ...about, get: getter(numbers, about) };
  }
  return { ...more, columns };
}

function getter(numbers, { values, scale }) {
  if (values) return (i) => values[numbers[i]];
  if (scale) return (i) => (numbers[i] === MISSING ? NaN : numbers[i] * scale);
  return (i) => numbers[i];
}

/** The rows of a table for which all of `where` holds, as plain objects. */
export function rows(block, where = {}) {
  if (!block) return [];
  const names = Object.keys(block.columns);
  const tests = [];
  for (const [name, wanted] of Object.entries(where)) {
    const column = block.columns[name];
    if (!column) continue;
    const code = column.values ? column.values.indexOf(wanted) : wanted;
    if (code === -1 && column.values) return [];
    tests.push([column.numbers, code]);
  }
  const found = [];
  for (let i = 0; i < block.n; i++) {
    if (!tests.every(([numbers, code]) => numbers[i] === code)) continue;
    found.push(Object.fromEntries(names.map((name) => [name, block.columns[name].get(i)])));
  }
  return found;
}

/** The values that a column takes, in the order in which they come. */
export function known(block, name) {
  const column = block?.columns[name];
  if (!column) return [];
  if (column.values) return column.values.filter((value) => value !== null);
  return [...new Set(column.numbers)];
}

/** Where each run of a ragged column begins. */
export function starts(counts) {
  const at = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i++) at[i + 1] = at[i] + counts[i];
  return at;
}
