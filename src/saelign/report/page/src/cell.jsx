// One layer pair: its scores, its pairs through the filters, what stands behind the numbers.

import { rgb } from "d3-color";
import { scaleLinear } from "d3-scale";
import { useMemo, useRef, useState } from "preact/hooks";
import { has, rows } from "./blocks.js";
import { scaleOf } from "./colour.js";
import {
  cellName, cellRow, chosen, peakCell, realControl, run, runIndex, sideTold, sidesOf, matchingsOf,
} from "./data.js";
import { Figure } from "./figure.jsx";
import { count, missing, name, percent, probability, score, z } from "./format.js";
import { PairRows, usePairs } from "./features.jsx";
import { Absent, Choice, Hover, useBlocks, useWidth } from "./parts.jsx";
import { go, link } from "./state.js";

const LITTLE = new Uint8Array(Uint32Array.of(1).buffer)[0] === 1;

/** Which cell is looked at: in the address, else where held-out correlation is highest. */
export const cellAt = (choice) => choice.cell ?? peakCell(choice);

/** Goes from cell to cell. */
export function CellPicker({ choice, cell, view }) {
  const { control } = realControl(choice);
  const all = run.tables.cells
    ? rows(run.tables.cells, { control, run: runIndex(choice), metric: choice.metric, matching: choice.matching })
    : run.core.blocks.filter((n) => n.startsWith("pairs/")).map((n) => n.split("/"))
      .filter(([, c]) => c === control).map((n) => ({ layer_a: +n[5], layer_b: +n[6] }));
  const a = [...new Set(all.map((r) => r.layer_a))].sort((x, y) => x - y);
  const b = [...new Set(all.map((r) => r.layer_b))].sort((x, y) => x - y);
  const [sideA, sideB] = sidesOf(control);
  const to = (na, nb) => go({ view, cell: `${na}-${nb}`, pair: undefined });
  return (
    <div class="switches" role="group" aria-label="Which cell">
      <Choice label={`Layer of ${sideTold(sideA)}`} value={cell.a} onChange={(v) => to(v, cell.b)}
        options={a.map((l) => [l, `layer ${l}`])} />
      <Choice label={`Layer of ${sideTold(sideB)}`} value={cell.b} onChange={(v) => to(cell.a, v)}
        options={b.map((l) => [l, `layer ${l}`])} />
      <Choice label="Comparison" value={control} options={run.core.controls.map((c) => [c, name(c)])}
        onChange={(v) => go({ view, control: v, pair: undefined }, { quietly: true })} />
      {matchingsOf().length > 1 && (
        <Choice label="Matching" value={choice.matching}
          options={matchingsOf().map((m) => [m, name(m)])}
          onChange={(v) => go({ view, matching: v, pair: undefined }, { quietly: true })} />
      )}
      {run.core.metrics.length > 1 && (
        <Choice label="Matched by" value={choice.metric}
          options={run.core.metrics.map((m) => [m, name(m)])}
          onChange={(v) => go({ view, metric: v, pair: undefined }, { quietly: true })} />
      )}
      {run.core.seeds.length > 1 && (
        <Choice label="Run" value={String(runIndex(choice))}
          options={run.core.seeds.map((s, i) => [String(i), `seed ${s}`])}
          onChange={(v) => go({ view, run: v, pair: undefined }, { quietly: true })} />
      )}
    </div>
  );
}

export function CellView({ address }) {
  const choice = chosen(address);
  const cell = cellAt(choice);
  const ref = useRef(null);
  const width = useWidth(ref);
  if (!cell) {
    return <section><h2>Cell</h2><Absent>The run holds no layer pair yet.</Absent></section>;
  }
  const { control } = realControl(choice);
  const [sideA, sideB] = sidesOf(control);
  const row = run.tables.cells ? cellRow(choice, cell) : null;
  const columns = width > 860 ? (width - 24) / 2 : width;
  const inner = columns - 34;
  return (
    <section aria-labelledby="cell-title" ref={ref}>
      <h2 id="cell-title">{sideTold(sideA)} layer {cell.a} × {sideTold(sideB)} layer {cell.b}
        {control !== "trained" && <small> · {name(control)}</small>}</h2>
      <CellPicker choice={choice} cell={cell} view="cell" />
      {row && <Facts row={row} />}
      {row?.note && <Absent>{row.note}</Absent>}
      <Scores choice={choice} cell={cell} />
      <div class="columns">
        {row && Number.isFinite(row.n_features_a) && <Funnel row={row} width={inner} choice={choice} cell={cell} />}
        <Behind choice={choice} cell={cell} width={inner} />
      </div>
      <Matched choice={choice} cell={cell} />
    </section>
  );
}

function Facts({ row }) {
  const interval = (low, high) => Number.isFinite(low) ? `[${score(low)}, ${score(high)}]` : null;
  const facts = [
    ["held-out correlation", score(row.held_out_correlation), interval(row.held_out_low, row.held_out_high)],
    ["of kept pairs", score(row.held_out_correlation_kept), interval(row.held_out_kept_low, row.held_out_kept_high)],
    ["mean correlation", score(row.mean_correlation), `kept ${score(row.mean_correlation_kept)}`],
    ["within-token", score(row.mean_within_token), `kept ${score(row.mean_within_token_kept)}`],
    ["pairs", count(row.n_pairs), `${count(row.n_kept)} kept`],
    ["mutual best", percent(row.mutual_share), `mean margin ${score(row.mean_margin)}`],
  ];
  return (
    <ul class="facts">
      {facts.map(([told, value, more]) => (
        <li key={told}><span>{told}</span><strong>{value}</strong><small>{more ?? "\u00a0"}</small></li>
      ))}
    </ul>
  );
}

function Scores({ choice, cell }) {
  const where = { control: realControl(choice).control, metric: choice.metric,
    matching: choice.matching, run: runIndex(choice), layer_a: cell.a, layer_b: cell.b };
  const found = rows(run.tables.scores, where);
  if (found.length === 0) return null;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Scores of this cell">
      <table class="numbers">
        <caption>Scores of the kept pairs, each beside chance</caption>
        <thead>
          <tr>
            <th scope="col">measure</th><th scope="col" class="text">null</th><th scope="col">score</th>
            <th scope="col">null mean ± sd</th><th scope="col">calibrated</th><th scope="col">z</th>
            <th scope="col">p</th><th scope="col">q</th><th scope="col">pairs</th><th scope="col">shuffles</th>
          </tr>
        </thead>
        <tbody>
          {found.map((r) => (
            <tr key={`${r.measure}/${r.null}`} class={r.q < 0.05 ? "" : "weak"}>
              <th scope="row">{r.measure}</th><td class="text">{name(r.null)}</td><td>{score(r.score)}</td>
              <td>{score(r.null_mean)} ± {score(r.null_sd)}</td><td><b>{score(r.calibrated)}</b></td>
              <td>{z(r.z)}</td><td>{probability(r.p)}</td>
              <td>{probability(r.q)}{r.floor_limited ? " *" : ""}</td>
              <td>{count(r.n_pairs)}</td><td>{count(r.n_permutations)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="note">Grey rows do not beat chance after correction (q ≥ .05).
        {found.some((r) => r.floor_limited) && " * p stands at its floor: more shuffles are needed to say how small it is."}
        {found.find((r) => r.note)?.note && ` ${found.find((r) => r.note).note}`}</p>
    </div>
  );
}

/** How many features and pairs are left after each step. */
function Funnel({ row, width, choice, cell }) {
  const steps = [
    ["features of A", row.n_features_a, "a"],
    ["features of B", row.n_features_b, "b"],
    ["A: fire often enough", row.n_features_a - row.n_unpaired_a, "a"],
    ["B: fire often enough", row.n_features_b - row.n_unpaired_b, "b"],
    ["matched pairs", row.n_pairs, "pair"],
    ["not punctuation", row.n_pairs - row.n_non_concept, "pair"],
    ["share a top token", row.n_pairs - row.n_non_concept - row.n_no_shared_token, "pair"],
    ["correlate enough: kept", row.n_kept, "pair kept"],
  ];
  const most = Math.max(...steps.map(([, n]) => n), 1);
  const left = 164;
  const w = Math.max(280, Math.min(620, width));
  const x = scaleLinear([0, most], [0, w - left - 58]);
  const line = 27;
  const title = "From features to kept pairs";
  return (
    <Figure title={title} file={`funnel_A${cell.a}_B${cell.b}_${choice.control}`}
      note={`${percent(row.n_kept / row.n_pairs)} of the pairs pass every filter.`}
      rows={() => steps.map(([step, n]) => ({ step, n }))}>
      <svg data-figure width={w} height={line * steps.length + 4} role="img"
        aria-label={`${title}: ${steps.map(([s, n]) => `${s} ${count(n)}`).join(", ")}`}>
        {steps.map(([told, n, kind], i) => (
          <g key={told}>
            <text x={left - 8} y={i * line + 13} class="axis" text-anchor="end"
              dominant-baseline="central">{told}</text>
            <rect x={left} y={i * line + 3} width={Math.max(1, x(n))} height="20" rx="3" class={`bar ${kind}`} />
            <text x={left + x(n) + 6} y={i * line + 13} class="axis strong"
              dominant-baseline="central">{count(n)}</text>
          </g>
        ))}
      </svg>
    </Figure>
  );
}

/** What is drawn from a cell's own block: distribution, canonical correlations, similarities. */
function Behind({ choice, cell, width }) {
  const mine = `details/${cellName(choice, cell)}`;
  const shift = `details/${cellName(choice, cell, "document_shift")}`;
  const blocks = useBlocks([mine, shift]);
  if (blocks === null) return <p class="wait">Opening …</p>;
  const [block, chance] = blocks;
  if (!block) return <Absent>The page holds no details of this cell{has(mine) ? "" : ": they found no room, or the run did not write them"}.</Absent>;
  return (
    <>
      <Distribution block={block} chance={chance} width={width} choice={choice} cell={cell} />
      <Canonical block={block} width={width} choice={choice} cell={cell} />
      <Similarities block={block} width={width} choice={choice} cell={cell} />
    </>
  );
}

function Distribution({ block, chance, width, choice, cell }) {
  const { control } = realControl(choice);
  const all = [...block.columns.all.numbers];
  const kept = [...block.columns.kept.numbers];
  const shifted = control !== "document_shift" && chance ? [...chance.columns.all.numbers] : null;
  const bins = all.length;
  const at = (i) => -1 + (2 * i) / bins;
  const used = all.map((n, i) => n + (shifted?.[i] ?? 0) > 0 ? i : -1).filter((i) => i >= 0);
  const from = used.length ? Math.min(used[0], bins / 2) : bins / 2;
  const to = used.length ? Math.max(used.at(-1) + 1, bins / 2 + 10) : bins;
  const w = Math.max(280, Math.min(620, width));
  const x = scaleLinear([at(from), at(to)], [48, w - 16]);
  const panels = [{ told: name(control), values: all, of: kept, high: shifted ? 118 : 176 },
    ...(shifted ? [{ told: "document shift", values: shifted, high: 74, chance: true }] : [])];
  let begin = 6;
  for (const panel of panels) {
    panel.top = begin;
    panel.y = scaleLinear([0, Math.max(1, ...panel.values)], [begin + panel.high, begin + 14]).nice(3);
    begin += panel.high + 12;
  }
  const h = begin + 34;
  const bar = x(at(1)) - x(at(0));
  const title = "Correlations of matched features";
  const total = (values) => count(values.reduce((s, n) => s + n, 0));
  return (
    <Figure title={title} file={`distribution_A${cell.a}_B${cell.b}_${choice.control}`}
      note={shifted ? "Below: the same matching with B's documents shifted, where nothing belongs together."
        : control === "document_shift" ? "B's documents are shifted: nothing belongs together here."
          : "No document shift was run for this comparison: it would show what matching alone makes of chance."}
      rows={() => all.map((n, i) => ({ from: at(i), to: at(i + 1), pairs: n, kept: kept[i], document_shift: shifted?.[i] }))}>
      <svg data-figure width={w} height={h} role="img" aria-label={`${title}: histogram of ${total(all)} pairs`}>
        {panels.map((panel) => (
          <g key={panel.told}>
            {panel.y.ticks(3).map((t) => (
              <g key={t}><line x1="48" x2={w - 16} y1={panel.y(t)} y2={panel.y(t)} class="rule" />
                <text x="42" y={panel.y(t)} class="axis" text-anchor="end" dominant-baseline="central">{count(t)}</text></g>
            ))}
            <text x={w - 16} y={panel.top + 4} class="axis strong" text-anchor="end" dominant-baseline="central">{panel.told}, {total(panel.values)} pairs</text>
            {panel.values.slice(from, to).map((n, i) => n > 0 && (
              <g key={i}>
                <rect x={x(at(from + i)) + 0.5} y={panel.y(n)} width={Math.max(0.5, bar - 1)} height={panel.y(0) - panel.y(n)}
                  class={panel.chance ? "bar chance" : "bar all"} />
                {panel.of && <rect x={x(at(from + i)) + 0.5} y={panel.y(panel.of[from + i])} width={Math.max(0.5, bar - 1)}
                  height={panel.y(0) - panel.y(panel.of[from + i])} class="bar pair kept" />}
              </g>
            ))}
          </g>
        ))}
        {x.ticks(6).map((t) => (
          <text key={t} x={x(t)} y={h - 26} class="axis" text-anchor="middle">{score(t, 2)}</text>
        ))}
        <text x={(48 + w - 16) / 2} y={h - 7} class="axis name" text-anchor="middle">correlation of a pair ({name(choice.metric)})</text>
      </svg>
      <ul class="keys">
        <li><i class="key all" /> all pairs</li><li><i class="key kept" /> kept pairs</li>
        {shifted && <li><i class="key chance" /> document shift</li>}
      </ul>
    </Figure>
  );
}

function Canonical({ block, width, choice, cell }) {
  const column = block.columns.canonical;
  if (!column) return <Absent>No canonical correlations: too few kept pairs, or the run was written before they were kept.</Absent>;
  const values = Array.from(column.numbers, (_, i) => column.get(i));
  const mean = values.reduce((s, v) => s + v, 0) / values.length;
  const w = Math.max(280, Math.min(620, width));
  const h = 200;
  const x = scaleLinear([0.5, values.length + 0.5], [44, w - 10]);
  const y = scaleLinear([0, 1], [h - 40, 10]);
  const bar = Math.min(26, x(2) - x(1) - 3);
  const title = "Canonical correlations of the decoder spaces";
  return (
    <Figure title={title} file={`canonical_A${cell.a}_B${cell.b}_${choice.control}`}
      note={`SVCCA is their mean, ${score(mean)} (dashed line).`}
      rows={() => values.map((value, i) => ({ component: i + 1, correlation: value }))}>
      <svg data-figure width={w} height={h} role="img" aria-label={`${title}: from ${score(values[0])} to ${score(values.at(-1))}`}>
        {[0, 0.25, 0.5, 0.75, 1].map((t) => (
          <g key={t}><line x1="44" x2={w - 10} y1={y(t)} y2={y(t)} class="rule" />
            <text x="38" y={y(t)} class="axis" text-anchor="end" dominant-baseline="central">{score(t, 2)}</text></g>
        ))}
        {values.map((v, i) => (
          <rect key={i} x={x(i + 1) - bar / 2} y={y(v)} width={bar} height={y(0) - y(v)} class="bar pair kept">
            <title>{`component ${i + 1}: ${score(v)}`}</title>
          </rect>
        ))}
        <line x1="44" x2={w - 10} y1={y(mean)} y2={y(mean)} class="line mean" />
        {values.map((_, i) => (values.length < 12 || (i + 1) % 5 === 0 || i === 0) && (
          <text key={i} x={x(i + 1)} y={h - 24} class="axis" text-anchor="middle">{i + 1}</text>
        ))}
        <text x={(44 + w - 10) / 2} y={h - 6} class="axis name" text-anchor="middle">canonical component</text>
      </svg>
    </Figure>
  );
}

/** The colour of every cosine that a block can hold, as a pixel. */
const COSINES = Uint32Array.from({ length: 256 }, (_, code) => {
  const { r, g, b } = rgb(scaleOf([-0.6, 0.6], "difference")
    .colour(Math.max(-0.6, Math.min(0.6, code / 127 - 1))));
  return new DataView(Uint8Array.of(r, g, b, 255).buffer).getUint32(0, LITTLE);
});

/** The matrices of cosines that RSA compares, rows of both in one order. */
function Similarities({ block, width, choice, cell }) {
  const [hover, setHover] = useState(null);
  const { sample_a: a, sample_b: b } = block.columns;
  const n = a?.n ?? 0;
  const images = useMemo(() => n < 3 ? null : ["a", "b"].map((side) => {
    const flat = block.columns[`cosine_${side}`].numbers;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = n;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(n, n);
    const pixels = new Uint32Array(picture.data.buffer);
    for (let i = 0, at = 0; i < n; i++) {
      pixels[i * n + i] = COSINES[254];
      for (let j = i + 1; j < n; j++) pixels[i * n + j] = pixels[j * n + i] = COSINES[flat[at++]];
    }
    context.putImageData(picture, 0, 0);
    return canvas.toDataURL();
  }), [block]);
  if (!images) return <Absent>No similarity matrices: too few kept pairs, or the run was written before they were kept.</Absent>;
  const cosine = (side, i, j) => {
    if (i === j) return 1;
    const [low, high] = i < j ? [i, j] : [j, i];
    return block.columns[`cosine_${side}`].numbers[low * n - (low * (low + 1)) / 2 + high - low - 1] / 127 - 1;
  };
  const size = Math.max(130, Math.min(268, Math.floor((width - 22) / 2)));
  const over = (event, side) => {
    const box = event.currentTarget.getBoundingClientRect();
    const j = Math.floor(((event.clientX - box.left) / box.width) * n);
    const i = Math.floor(((event.clientY - box.top) / box.height) * n);
    if (i < 0 || j < 0 || i >= n || j >= n) return;
    setHover({ i, j, side, at: { x: event.clientX, y: event.clientY } });
  };
  const title = "What RSA compares: cosines between decoder rows";
  return (
    <Figure title={title} file={`similarities_A${cell.a}_B${cell.b}_${choice.control}`}
      note={`${n} of the kept pairs, in the same order on both sides: clusters of A. Blocks that stand in both are shared structure.`}
      rows={() => {
        const found = [];
        for (let i = 0; i < n; i++) {
          for (let j = i + 1; j < n; j++) {
            found.push({ feature_a_1: a.numbers[i], feature_a_2: a.numbers[j], cosine_a: cosine("a", i, j),
              feature_b_1: b.numbers[i], feature_b_2: b.numbers[j], cosine_b: cosine("b", i, j) });
          }
        }
        return found;
      }}>
      <div class="pair-of">
        {["a", "b"].map((side, k) => (
          <svg data-figure key={side} width={size} height={size + 22} role="img"
            aria-label={`Cosines among ${n} features of ${side.toUpperCase()}`}>
            <text x="0" y="12" class="axis strong">{sideTold(sidesOf(realControl(choice).control)[k])}, layer {k === 0 ? cell.a : cell.b}</text>
            <image href={images[k]} x="0" y="20" width={size} height={size} class="pixels"
              preserveAspectRatio="none" onPointerMove={(e) => over(e, side)} onPointerLeave={() => setHover(null)} />
            {hover && (
              <rect x={(hover.j / n) * size - 1} y={20 + (hover.i / n) * size - 1} width={size / n + 2}
                height={size / n + 2} fill="none" class="mark" pointer-events="none" />
            )}
          </svg>
        ))}
      </div>
      <Ramp />
      <Hover at={hover?.at}>
        {hover && (
          <>
            <span>A {a.numbers[hover.i]} and {a.numbers[hover.j]}: <b>{score(cosine("a", hover.i, hover.j), 2)}</b></span>
            <span>B {b.numbers[hover.i]} and {b.numbers[hover.j]}: <b>{score(cosine("b", hover.i, hover.j), 2)}</b></span>
          </>
        )}
      </Hover>
    </Figure>
  );
}

function Ramp() {
  const scale = scaleOf([-0.6, 0.6], "difference");
  return (
    <svg data-figure width="190" height="30" role="img" aria-label="Colours of cosines from -.6 to .6" class="ramp">
      {Array.from({ length: 48 }, (_, i) => (
        <rect key={i} x={4 + i * 3.75} y="2" width="4" height="9" fill={scale.colour(-0.6 + (1.2 * i) / 47)} />
      ))}
      <text x="4" y="24" class="axis" text-anchor="start">−.6</text>
      <text x="94" y="24" class="axis" text-anchor="middle">cosine</text>
      <text x="184" y="24" class="axis" text-anchor="end">.6</text>
    </svg>
  );
}

/** The strongest pairs of the cell, and the way to all of them. */
function Matched({ choice, cell }) {
  const pairs = usePairs(choice, cell);
  if (pairs === null) return <p class="wait">Opening …</p>;
  if (!pairs.block) return <Absent>The matched features of this cell are not in the page.</Absent>;
  const shown = [...Array(pairs.block.n).keys()].filter((i) => pairs.reason(i) === "").slice(0, 12);
  return (
    <div class="matched">
      <h3>Matched features</h3>
      <p class="note">The strongest kept pairs. <a href={link({ view: "features", cell: `${cell.a}-${cell.b}`, pair: undefined })}>Browse all {count(pairs.block.n)}</a></p>
      {shown.length === 0 ? <Absent>No pair passes the filters.</Absent> : <PairRows pairs={pairs} shown={shown} cell={cell} />}
    </div>
  );
}

export { missing };
