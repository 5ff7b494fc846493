// Semantic subspaces: concept by layer, concepts together, the papers' tables.

import { useRef, useState } from "preact/hooks";
import { rows } from "./blocks.js";
import { isLight, scaleOf } from "./colour.js";
import { MEAN, SPREAD, chosen, nullsOf, realControl, run, sideTold, valuesIn } from "./data.js";
import { CsvButton, Figure } from "./figure.jsx";
import { count, name, percent, probability, score } from "./format.js";
import { Legend } from "./grid.jsx";
import { Absent, Choice, Hover, useWidth } from "./parts.jsx";
import { go } from "./state.js";

const KINDS = { concept: "Concepts", union: "Unions of concepts", phrase: "Phrases of two concepts",
  wrong_order: "The same words in the other order", alone: "Words alone" };

/** Means over runs of rows that are about the same thing. */
function overRuns(found, by, values) {
  const groups = new Map();
  for (const row of found) {
    const key = by.map((c) => row[c]).join("|");
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(row);
  }
  return [...groups.values()].map((group) => {
    const mean = { ...group[0] };
    for (const value of values) {
      const there = group.map((r) => r[value]).filter(Number.isFinite);
      mean[value] = there.length ? there.reduce((s, v) => s + v, 0) / there.length : NaN;
    }
    mean.weak = !group.every((r) => r.q < 0.05);
    return mean;
  });
}

export function ConceptsView({ address }) {
  const choice = chosen(address);
  const ref = useRef(null);
  const width = useWidth(ref);
  const { tables } = run;
  const controls = valuesIn("subspace_scores", "control");
  const measures = valuesIn("subspace_scores", "measure");
  const measure = measures.includes(choice.measure) ? choice.measure : measures[0];
  const nulls = nullsOf("any");
  const nullName = nulls.includes(address.null) ? address.null : nulls.includes("same_size") ? "same_size" : nulls[0];
  const { control } = realControl(choice);
  const value = ["score", "calibrated", "null_mean", "p", "q"].includes(address.value) ? address.value : "calibrated";
  const set = (key) => (v) => go({ view: "concepts", [key]: v }, { quietly: true });
  const where = { control: controls.includes(control) ? control : controls[0], matching: choice.matching };
  const ofRun = choice.run === MEAN || choice.run === SPREAD ? {} : { run: Number(choice.run) };
  const all = rows(tables.subspace_scores, { ...where, ...ofRun, measure, null: nullName });
  const means = overRuns(all, ["subspace", "layer_a", "layer_b"],
    ["score", "null_mean", "calibrated", "p", "q", "n_pairs"]);
  // One scale for all that is held against each other: every kind of subspace in every comparison.
  const held = rows(tables.subspace_scores, { ...ofRun, matching: choice.matching, measure, null: nullName });
  const scale = scaleOf(held.map((r) => r[value]), value === "p" || value === "q" ? "p" : "score");
  const runs = run.core.seeds.map((seed, i) => [String(i), `seed ${seed}`]);
  if (runs.length > 1) runs.unshift([MEAN, `mean of ${runs.length} seeds`]);
  return (
    <section aria-labelledby="concepts-title" ref={ref}>
      <h2 id="concepts-title">Concepts</h2>
      <div class="switches" role="group" aria-label="What is shown of concepts">
        <Choice label="Show" value={value} onChange={set("value")}
          options={[["calibrated", "calibrated score"], ["score", "score"], ["null_mean", "null mean"], ["p", "p"], ["q", "q (corrected p)"]]} />
        <Choice label="Measure" value={measure} onChange={set("measure")} options={measures.map((m) => [m, m])} />
        <Choice label="Null" value={nullName} onChange={set("null")} options={nulls.map((n) => [n, name(n)])} />
        <Choice label="Comparison" value={where.control} onChange={set("control")} options={controls.map((c) => [c, name(c)])} />
        <Choice label="Matching" value={choice.matching} onChange={set("matching")}
          options={valuesIn("subspace_scores", "matching").map((m) => [m, name(m)])} />
        <Choice label="Run" value={choice.run === SPREAD ? MEAN : choice.run} onChange={set("run")} options={runs} />
      </div>
      {Object.entries(KINDS).map(([kind, told]) => {
        const found = means.filter((r) => r.kind === kind);
        if (found.length === 0) return null;
        return <ConceptGrid key={kind} told={told} found={found} value={value} measure={measure} width={width} scale={scale}
          nullName={nullName} of={where} />;
      })}
      <Sizes width={width} />
      <PaperTable where={{ ...where, ...ofRun }} nullName={nullName} measures={measures} />
    </section>
  );
}

/** A row a subspace, a column a layer pair. */
function ConceptGrid({ told, found, value, measure, nullName, width, scale, of }) {
  const [hover, setHover] = useState(null);
  const subspaces = [...new Set(found.map((r) => r.subspace))];
  const cells = [...new Map(found.map((r) => [`${r.layer_a}-${r.layer_b}`, r])).values()]
    .sort((x, y) => x.layer_a - y.layer_a || x.layer_b - y.layer_b);
  const at = new Map(found.map((r) => [`${r.subspace}|${r.layer_a}-${r.layer_b}`, r]));
  const longest = Math.max(...subspaces.map((s) => Math.min(s.length, 26)));
  const left = Math.min(200, 14 + longest * 7);
  const size = Math.max(17, Math.min(66, (width - left - 60) / cells.length));
  const high = 26;
  const w = left + size * cells.length + 8;
  const h = 8 + high * subspaces.length + 46;
  const groups = [...new Set(cells.map((c) => c.layer_a))];
  const show = (v) => (value === "p" || value === "q" ? probability(v) : score(v, 2));
  const title = `${told}: ${value === "score" ? measure : `${value === "null_mean" ? "null mean" : value}, ${measure}`}`;
  return (
    <Figure wide title={title} file={`${told.split(" ")[0].toLowerCase()}_${measure}_${value}`}
      note={`${name(of.control)}, ${name(nullName)} null. Empty: too few pairs to score.`}
      rows={() => found.map((r) => ({ subspace: r.subspace, kind: r.kind, layer_a: r.layer_a, layer_b: r.layer_b,
        measure, null: nullName, score: r.score, null_mean: r.null_mean, calibrated: r.calibrated, p: r.p, q: r.q, n_pairs: r.n_pairs }))}>
      <svg data-figure width={w} height={h} role="img" aria-label={`${title}, ${subspaces.length} subspaces by ${cells.length} layer pairs`}>
        <defs>
          <pattern id={`weak-${told.slice(0, 3)}`} width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
            <line x1="0" y1="0" x2="0" y2="6" stroke="#fff" stroke-opacity=".55" stroke-width="1.4" />
            <line x1="3" y1="0" x2="3" y2="6" stroke="#000" stroke-opacity=".3" stroke-width="1.2" />
          </pattern>
        </defs>
        {subspaces.map((s, i) => (
          <g key={s}>
            <text x={left - 8} y={8 + i * high + high / 2} class="axis" text-anchor="end" dominant-baseline="central">{s.length > 26 ? `${s.slice(0, 25)}…` : s}<title>{s}</title></text>
            {cells.map((c, j) => {
              const r = at.get(`${s}|${c.layer_a}-${c.layer_b}`);
              const colour = r ? scale.colour(r[value]) : null;
              const text = r ? show(r[value]) : "";
              const gap = groups.indexOf(c.layer_a) * 6;
              const x = left + j * (size - (6 * (groups.length - 1)) / cells.length) + gap;
              return (
                <g key={j} onPointerMove={(e) => r && setHover({ r, at: { x: e.clientX, y: e.clientY } })} onPointerLeave={() => setHover(null)}>
                  <rect x={x} y={8 + i * high} width={size - 7 / cells.length - 1} height={high - 1} rx="2" fill={colour ?? "none"} class={colour ? "" : "none-cell"} />
                  {colour && r.weak && <rect x={x} y={8 + i * high} width={size - 7 / cells.length - 1} height={high - 1} rx="2" fill={`url(#weak-${told.slice(0, 3)})`} pointer-events="none" />}
                  {colour && size > 34 && (
                    <>
                      {r.weak && <rect x={x + size / 2 - 3 - text.length * 3.6} y={8 + i * high + 4} width={text.length * 7.2 + 4} height={high - 9} rx="3" fill={colour} pointer-events="none" />}
                      <text x={x + size / 2 - 1} y={8 + i * high + high / 2} class="ink" text-anchor="middle" dominant-baseline="central" pointer-events="none"
                        fill={isLight(colour) ? "#111" : "#fff"}>{text}</text>
                    </>
                  )}
                </g>
              );
            })}
          </g>
        ))}
        {cells.map((c, j) => {
          const x = left + j * (size - (6 * (groups.length - 1)) / cells.length) + groups.indexOf(c.layer_a) * 6 + size / 2 - 1;
          const first = j === 0 || cells[j - 1].layer_a !== c.layer_a;
          const n = cells.filter((o) => o.layer_a === c.layer_a).length;
          return (
            <g key={j}>
              <text x={x} y={h - 30} class="axis" text-anchor="middle">{c.layer_b}</text>
              {first && <text x={x + ((n - 1) * size) / 2} y={h - 13} class="axis strong" text-anchor="middle">A {c.layer_a}</text>}
            </g>
          );
        })}
        <text x={left - 8} y={h - 30} class="axis" text-anchor="end">layer of B</text>
        <text x={left - 8} y={h - 13} class="axis" text-anchor="end">layer of A</text>
      </svg>
      <Legend scale={scale} value={value} />
      <Hover at={hover?.at}>
        {hover && (
          <>
            <strong>{hover.r.subspace}, A {hover.r.layer_a} × B {hover.r.layer_b}</strong>
            <span>{measure} {score(hover.r.score)}, null {score(hover.r.null_mean)}, calibrated {score(hover.r.calibrated)}</span>
            <span>p {probability(hover.r.p)}, q {probability(hover.r.q)}, {count(hover.r.n_pairs)} pairs</span>
            {hover.r.combined && <span>{hover.r.combined}</span>}
            {hover.r.note && <span>{hover.r.note}</span>}
          </>
        )}
      </Hover>
    </Figure>
  );
}

/** How many features of each layer belong to each concept. */
function Sizes() {
  const table = run.tables.subspace_features;
  const all = rows(table, { run: 0, kind: "concept" });
  if (all.length === 0) return null;
  const sides = [...new Set(all.map((r) => r.model))];
  const columns = sides.flatMap((side) => [...new Set(all.filter((r) => r.model === side).map((r) => r.layer))]
    .sort((x, y) => x - y).map((layer) => ({ side, layer })));
  const subspaces = [...new Set(all.map((r) => r.subspace))];
  const at = new Map(all.map((r) => [`${r.subspace}|${r.model}|${r.layer}`, r]));
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Features of each concept">
      <table class="numbers">
        <caption>Features of each concept, layer by layer <CsvButton file="concept_features" rows={() => all} /></caption>
        <thead>
          <tr><th scope="col" rowSpan="2">concept</th><th scope="col" rowSpan="2">keywords in the text</th>
            {sides.map((s) => <th scope="colgroup" key={s} colSpan={columns.filter((c) => c.side === s).length}>{sideTold(s)}</th>)}</tr>
          <tr>{columns.map((c) => <th scope="col" key={`${c.side}${c.layer}`}>{c.layer}</th>)}</tr>
        </thead>
        <tbody>
          {subspaces.map((s) => (
            <tr key={s}><th scope="row">{s}</th><td>{count(all.find((r) => r.subspace === s)?.n_occurrences)}</td>
              {columns.map((c) => <td key={`${c.side}${c.layer}`}>{count(at.get(`${s}|${c.side}|${c.layer}`)?.n_features)}</td>)}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** The papers' tables: for each layer pair and subspace the score, chance and p of every measure. */
function PaperTable({ where, nullName, measures }) {
  const all = rows(run.tables.subspace_scores, { ...where, null: nullName });
  const wide = new Map();
  for (const row of all) {
    const key = `${row.run}|${row.layer_a}|${row.layer_b}|${row.subspace}`;
    if (!wide.has(key)) wide.set(key, { ...row, of: {} });
    wide.get(key).of[row.measure] = row;
  }
  const found = [...wide.values()].filter((r) => Object.values(r.of).some((m) => Number.isFinite(m.score)));
  const better = found.filter((r) => Object.values(r.of).some((m) => m.q < 0.05)).length;
  if (found.length === 0) return <Absent>No subspace had enough pairs to be scored.</Absent>;
  const many = new Set(found.map((r) => r.run)).size > 1;
  return (
    <div class="scroll tall" tabIndex={0} role="region" aria-label="Scores of subspaces, layer pair by layer pair">
      <table class="numbers">
        <caption>Every layer pair and subspace that could be scored: score, null mean, p{" "}
          <small>({count(better)} of {count(found.length)}, {percent(better / found.length)}, beat chance by some measure)</small>{" "}
          <CsvButton file={`subspaces_${where.matching}`} rows={() => found.map((r) => ({
            run: r.run, layer_a: r.layer_a, layer_b: r.layer_b, subspace: r.subspace, kind: r.kind, n_pairs: r.n_pairs,
            ...Object.fromEntries(Object.entries(r.of).flatMap(([m, v]) => ["score", "null_mean", "p", "q", "calibrated"].map((k) => [`${m}_${k}`, v[k]]))) }))} /></caption>
        <thead><tr><th scope="col">layers A, B</th>{many && <th scope="col">seed</th>}<th scope="col" class="text">subspace</th><th scope="col">pairs</th>
          {measures.map((m) => <th scope="col" key={m}>{m}: score (null) p</th>)}</tr></thead>
        <tbody>
          {found.slice(0, 400).map((r) => (
            <tr key={`${r.run}|${r.layer_a}|${r.layer_b}|${r.subspace}`}>
              <td class="text">{r.layer_a}, {r.layer_b}</td>{many && <td>{run.core.seeds[r.run]}</td>}<th scope="row" class="text">{r.subspace}</th><td>{count(r.n_pairs)}</td>
              {measures.map((m) => {
                const v = r.of[m];
                return <td key={m}>{v ? <>{v.q < 0.05 ? <b>{score(v.score)}</b> : score(v.score)} ({score(v.null_mean)}) {probability(v.p)}</> : "–"}</td>;
              })}
            </tr>
          ))}
        </tbody>
      </table>
      <p class="note">Bold: q &lt; .05.{found.length > 400 && ` The first 400 of ${count(found.length)}; the CSV has all.`}</p>
    </div>
  );
}
