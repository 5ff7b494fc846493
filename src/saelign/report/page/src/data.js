// What the run says, looked up.

import { rows } from "./blocks.js";

/** The run's core and tables; filled once before anything is drawn. */
export const run = { core: null, tables: {} };

export const MEAN = "mean";
export const SPREAD = "spread";

/** Quantities that a grid can show: of measures with their null, or of the pairs themselves. */
export const QUANTITIES = {
  score: { label: "score", of: "scores", kind: "score" },
  calibrated: { label: "calibrated score", of: "scores", kind: "score" },
  null_mean: { label: "null mean", of: "scores", kind: "score" },
  z: { label: "z", of: "scores", kind: "score" },
  p: { label: "p", of: "scores", kind: "p" },
  q: { label: "q (corrected p)", of: "scores", kind: "p" },
  mean_correlation: { label: "mean correlation", of: "cells", kind: "score", kept: true },
  mean_within_token: { label: "within-token correlation", of: "cells", kind: "score", kept: true },
  held_out_correlation: { label: "held-out correlation", of: "cells", kind: "score", kept: true },
  n_pairs: { label: "number of pairs", of: "cells", kind: "count" },
  n_kept: { label: "number of kept pairs", of: "cells", kind: "count" },
  mutual_share: { label: "share of mutual pairs", of: "cells", kind: "score" },
};

const first = (list) => list?.[0];

/** What is chosen: what the address says, else what the run's study comes first with. */
export function chosen(address) {
  const { core, tables } = run;
  const pick = (name, known, fallback) =>
    known.map(String).includes(address[name]) ? address[name] : fallback;
  const controls = core.controls;
  const matchings = matchingsOf();
  const runs = core.seeds.map((_, i) => String(i));
  const many = runs.length > 1;
  const differences = controls.filter((c) => ["untrained", "document_shift"].includes(c))
    .map((c) => `minus_${c}`);
  const value = QUANTITIES[address.value] ? address.value : tables.scores ? "calibrated"
    : "held_out_correlation";
  return {
    value,
    measure: pick("measure", core.measures, core.measure),
    null: pick("null", nullsOf(address.subspace), core.null),
    matching: pick("matching", matchings, first(matchings)),
    metric: pick("metric", core.metrics, first(core.metrics)),
    control: pick("control", [...controls, ...differences], "trained"),
    run: pick("run", many ? [...runs, MEAN, SPREAD] : runs, many ? MEAN : "0"),
    kept: address.kept === "1" && (QUANTITIES[value].kept ?? false),
    subspace: pick("subspace", subspaces(), ""),
    cell: cellOf(address.cell ?? address.pair?.split(":")[0]),
    pair: address.pair?.split(":")[1]?.split("-").map(Number),
  };
}

/** How features were matched; of an unfinished run as the names of its blocks tell. */
export function matchingsOf() {
  const told = valuesIn("cells", "matching");
  if (told.length) return told;
  return [...new Set(run.core.blocks.filter((n) => n.startsWith("pairs/")).map((n) => n.split("/")[4]))];
}

export const subspaces = () => valuesIn("subspaces", "subspace");

function nullsOf(subspace) {
  const table = subspace ? "subspace_scores" : "scores";
  return valuesIn(table, "null");
}
export { nullsOf };

export function valuesIn(table, name) {
  const column = run.tables[table]?.columns[name];
  if (!column) return [];
  return column.values ? column.values.filter((v) => v !== null) : [...new Set(column.numbers)];
}

function cellOf(text) {
  const [a, b] = String(text ?? "").split("-").map(Number);
  return text && Number.isFinite(a) && Number.isFinite(b) ? { a, b } : null;
}

const ofGrid = (table, { control, metric, matching, subspace }) => ({
  control, metric, matching, ...(table.columns.subspace && subspace ? { subspace } : {}),
});

/** A grid: layers of A and B, and for each cell its value and whether it beats chance. */
export function gridOf(choice) {
  if (choice.control.startsWith("minus_")) return difference(choice);
  const about = QUANTITIES[choice.value];
  const many = choice.run === MEAN || choice.run === SPREAD;
  const inside = Boolean(choice.subspace);
  let table;
  if (about.of === "scores") {
    table = inside ? run.tables.subspace_scores
      : many && run.tables.summary ? run.tables.summary : run.tables.scores;
  } else {
    table = inside ? run.tables.subspaces : run.tables.cells;
  }
  if (!table) return null;
  const column = choice.kept && about.kept ? `${choice.value}_kept` : choice.value;
  const where = ofGrid(table, choice);
  if (about.of === "scores") Object.assign(where, { measure: choice.measure, null: choice.null });
  if (!many) where.run = Number(choice.run);
  const byCell = new Map();
  for (const row of rows(table, where)) {
    const key = `${row.layer_a}-${row.layer_b}`;
    if (!byCell.has(key)) byCell.set(key, []);
    byCell.get(key).push(row);
  }
  const cells = new Map();
  const known = table.columns[column] !== undefined;
  for (const [key, found] of byCell) {
    const values = found.map((row) => row[column]).filter((v) => Number.isFinite(v));
    const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
    let value = known && values.length ? mean : NaN;
    if (choice.run === SPREAD) {
      value = found[0].score_sd !== undefined && choice.value === "score" ? found[0].score_sd
        : values.length > 1
          ? Math.sqrt(values.reduce((s, v) => s + (v - mean) ** 2, 0) / (values.length - 1)) : NaN;
    }
    cells.set(key, {
      ...found[0], value,
      weak: about.of === "scores" && choice.run !== SPREAD
        ? !found.every((row) => row.q < 0.05) : false,
    });
  }
  return { ...layersOf(cells), cells, choice, kind: about.kind };
}

function layersOf(cells) {
  const of = (i) => [...new Set([...cells.keys()].map((key) => Number(key.split("-")[i])))]
    .sort((x, y) => x - y);
  return { layersA: of(0), layersB: of(1) };
}

function difference(choice) {
  const trained = gridOf({ ...choice, control: "trained" });
  const other = gridOf({ ...choice, control: choice.control.replace("minus_", "") });
  if (!trained || !other) return null;
  const cells = new Map();
  for (const [key, cell] of trained.cells) {
    const value = cell.value - (other.cells.get(key)?.value ?? NaN);
    cells.set(key, { ...cell, value, weak: false });
  }
  return { ...trained, cells, choice, kind: "difference" };
}

/** The row of `cells` of a cell. */
export function cellRow(choice, cell) {
  const { control } = realControl(choice);
  const where = { control, metric: choice.metric, matching: choice.matching,
    layer_a: cell.a, layer_b: cell.b, run: runIndex(choice) };
  return rows(run.tables.cells, where)[0];
}

export const runIndex = (choice) => (/^\d+$/.test(choice.run) ? Number(choice.run) : 0);

export const realControl = (choice) => ({
  control: choice.control.startsWith("minus_") ? "trained" : choice.control,
});

/** What the page calls a cell. */
export function cellName(choice, cell, control) {
  const c = control ?? realControl(choice).control;
  return `${c}/${runIndex(choice)}/${choice.metric}/${choice.matching}/${cell.a}/${cell.b}`;
}

/** The sides that a comparison compares. */
export function sidesOf(control) {
  return { untrained: ["a_untrained", "b_untrained"], seed_a: ["a", "a_seed"],
    seed_b: ["b", "b_seed"] }[control] ?? ["a", "b"];
}

/** A side as it is told: A, B, A untrained, A (other SAEs). */
export function sideTold(side) {
  const letter = side[0].toUpperCase();
  if (side.endsWith("_untrained")) return `${letter} untrained`;
  if (side.endsWith("_seed")) return `${letter}, other SAEs`;
  return letter;
}

/** The cell to begin with: the highest of the grid, calibrated where it can be. */
export function peakCell(choice) {
  const grid = gridOf({ ...choice, value: "held_out_correlation", control: "trained" })
    ?? gridOf(choice);
  let best = null;
  for (const [key, cell] of grid?.cells ?? []) {
    if (!best || cell.value > best.value || !Number.isFinite(best.value)) best = { key, ...cell };
  }
  if (best) return cellOf(best.key);
  const some = run.core.blocks.find((name) => name.startsWith("pairs/"));
  if (!some) return null;
  const [a, b] = some.split("/").slice(-2).map(Number);
  return { a, b };
}
