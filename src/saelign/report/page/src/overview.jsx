// What was compared, what came of it, and what to be careful about.

import { scaleLinear } from "d3-scale";
import { useRef } from "preact/hooks";
import { rows } from "./blocks.js";
import { chosen, gridOf, run, sideTold } from "./data.js";
import { Figure } from "./figure.jsx";
import { count, name, percent, score, short, site } from "./format.js";
import { Heat, Legend, commonScale, gridRows, quantityTold } from "./grid.jsx";
import { Pairs, useWidth } from "./parts.jsx";
import { go, link } from "./state.js";

export const VERDICTS = {
  shared: ["#0072b2", "each is the other's best partner, above chance"],
  one_sided: ["#8fcbee", "has a partner above chance, which has a better one"],
  only: ["#d55e00", "no partner above chance at any compared layer"],
  unclear: ["#d9d9d9", "fires too rarely to tell"],
};

/** Which features are shared, layer by layer, as stacked bars. */
function VerdictBars({ width }) {
  const table = run.tables.verdict_shares;
  const all = rows(table, { run: 0 });
  const groups = [];
  for (const row of all) {
    const key = [row.model, row.control, row.against].join("/");
    let group = groups.find((g) => g.key === key);
    if (!group) groups.push(group = { key, ...row, layers: new Map() });
    if (!group.layers.has(row.layer)) group.layers.set(row.layer, {});
    group.layers.get(row.layer)[row.verdict] = row.n;
  }
  groups.sort((x, y) => x.model.localeCompare(y.model)
    || ["trained", "untrained"].indexOf(x.control) - ["trained", "untrained"].indexOf(y.control)
    || -x.against.localeCompare(y.against));
  const left = 150;
  const bar = 20;
  const drawn = groups.flatMap((group) => [...group.layers].sort((x, y) => x[0] - y[0])
    .map(([layer, of], i) => ({ group, layer, of, head: i === 0 })));
  let y = 4;
  const w = Math.max(300, Math.min(760, width));
  const label = ({ model, control, against }) => {
    if (against === "decoy") return `${model.toUpperCase()}, decoy`;
    return `${model.toUpperCase()}, ${control}`;
  };
  const placed = drawn.map((row) => {
    if (row.head && y > 4) y += 8;
    const at = y;
    y += bar + 2;
    return { ...row, y: at };
  });
  return (
    <Figure wide title="What is said of each feature, held against all compared layers of the other side"
      note="The decoy is the same model read through other SAEs: nothing is truly missing there, so its share of “only” is the procedure's error."
      file="verdicts" rows={() => all}>
      <svg data-figure width={w} height={y + 18} role="img"
        aria-label="Share of features that are shared, one-sided, of one model only, or unclear">
        {placed.map(({ group, layer, of, y: top, head }) => {
          const total = Object.values(of).reduce((s, v) => s + v, 0);
          let x = left;
          return (
            <g key={`${group.key}/${layer}`}>
              {head && <text x="0" y={top + bar / 2} class="axis strong" dominant-baseline="central">{label(group)}</text>}
              <text x={left - 8} y={top + bar / 2} class="axis" text-anchor="end"
                dominant-baseline="central">layer {layer}</text>
              {Object.entries(VERDICTS).map(([verdict, [colour]]) => {
                const share = (of[verdict] ?? 0) / total;
                const wide = share * (w - left - 8);
                const from = x;
                x += wide;
                return (
                  <g key={verdict}>
                    <rect x={from} y={top} width={Math.max(0, wide - 0.5)} height={bar} fill={colour}>
                      <title>{`${name(verdict)}: ${count(of[verdict] ?? 0)} of ${count(total)} (${percent(share)})`}</title>
                    </rect>
                    {wide > 30 && (
                      <text x={from + wide / 2} y={top + bar / 2} text-anchor="middle" class="ink"
                        dominant-baseline="central"
                        fill={verdict === "shared" ? "#fff" : "#111"}>{Math.round(100 * share)}</text>
                    )}
                  </g>
                );
              })}
            </g>
          );
        })}
        {[0, 50, 100].map((tick) => (
          <text key={tick} x={left + (tick / 100) * (w - left - 8)} y={y + 12} class="axis"
            text-anchor={tick === 0 ? "start" : tick === 100 ? "end" : "middle"}>{tick} %</text>
        ))}
      </svg>
      <ul class="keys">
        {Object.entries(VERDICTS).map(([verdict, [colour, told]]) => (
          <li key={verdict}><svg width="12" height="12" aria-hidden="true"><rect width="12" height="12" rx="2" fill={colour} /></svg>
            <span><b>{name(verdict)}</b>: {told}</span></li>
        ))}
      </ul>
    </Figure>
  );
}

/** Every layer pair of every comparison as a dot: what was found beside what controls give. */
function Strips({ choice, width }) {
  const { core } = run;
  const quantities = [
    ["held_out_correlation", "held-out correlation"], ["mean_within_token", "within-token correlation"],
    ...(core.measure ? [["calibrated", `calibrated ${core.measure}`]] : []),
  ];
  const data = quantities.map(([value, told]) => ({ value, told, rows: core.controls.map((control) => ({
    control, values: [...(gridOf({ ...choice, control, value, measure: core.measure, kept: false, subspace: "" })?.cells.values() ?? [])]
      .filter((c) => Number.isFinite(c.value)),
  })) }));
  const left = 118;
  const w = Math.max(300, Math.min(640, width));
  const line = 19;
  const high = line * core.controls.length + 44;
  const flat = data.flatMap((d) => d.rows.flatMap((r) => r.values.map((c) => c.value)));
  const x = scaleLinear([Math.min(-0.01, ...flat), Math.max(0.1, ...flat) * 1.03], [left, w - 14]);
  const title = "Every layer pair, beside its controls";
  return (
    <Figure title={title} file="controls" note="A dot is a layer pair, the bar their mean."
      rows={() => data.flatMap((d) => d.rows.flatMap((r) => r.values.map((c) => ({
        quantity: d.told, comparison: r.control, layer_a: c.layer_a, layer_b: c.layer_b, value: c.value }))))}>
      <svg data-figure width={w} height={high * data.length + 18} role="img"
        aria-label={`${title}: ${data.map((d) => `${d.told} ${d.rows.map((r) => `${name(r.control)} ${mean(r.values)}`).join(", ")}`).join("; ")}`}>
        {data.map((d, k) => (
          <g key={d.value} transform={`translate(0 ${k * high})`}>
            <text x="0" y="12" class="axis strong">{d.told}</text>
            {x.ticks(6).map((t) => (
              <line key={t} x1={x(t)} x2={x(t)} y1="20" y2={high - 16} class="rule" />
            ))}
            {d.rows.map((r, i) => {
              const y = 20 + line * i + line / 2;
              const m = r.values.reduce((s, c) => s + c.value, 0) / r.values.length;
              return (
                <g key={r.control}>
                  <text x={left - 10} y={y} class="axis" text-anchor="end" dominant-baseline="central">{name(r.control)}</text>
                  {r.values.length === 0 && <text x={left + 4} y={y} class="axis" dominant-baseline="central">not scored</text>}
                  {r.values.map((c) => (
                    <circle key={`${c.layer_a}-${c.layer_b}`} cx={x(c.value)} cy={y} r="3.6" class={r.control === "trained" ? "dot own" : "dot"}>
                      <title>{`A ${c.layer_a}, B ${c.layer_b}: ${score(c.value)}`}</title>
                    </circle>
                  ))}
                  {r.values.length > 0 && <line x1={x(m)} x2={x(m)} y1={y - 8} y2={y + 8} class="line middle" />}
                </g>
              );
            })}
            {x.ticks(6).map((t) => (
              <text key={t} x={x(t)} y={high - 3} class="axis" text-anchor="middle">{score(t, 2)}</text>
            ))}
          </g>
        ))}
      </svg>
    </Figure>
  );
}

const mean = (cells) => (cells.length ? score(cells.reduce((s, c) => s + c.value, 0) / cells.length) : "not scored");

/** A side: model, where it is read, SAEs. */
function SideCard({ side }) {
  const { core } = run;
  const about = core.models[side] ?? core.study[`model_${side}`] ?? {};
  const layers = rows(run.tables.layers, { model: side, run: 0 });
  const dead = layers.reduce((s, l) => s + l.n_dead, 0);
  const all = layers.reduce((s, l) => s + l.n_features, 0);
  const l0 = layers.map((l) => l.l0).filter(Number.isFinite);
  const fit = layers.map((l) => l.explained_variance).filter(Number.isFinite);
  const range = (values, told) => values.length === 0 ? undefined
    : Math.min(...values) === Math.max(...values) ? told(values[0])
      : `${told(Math.min(...values))} to ${told(Math.max(...values))}`;
  return (
    <div class={`card side-${side}`}>
      <h3><span class={`badge ${side}`}>{side.toUpperCase()}</span> <bdi>{short(about.name)}</bdi></h3>
      <Pairs of={[
        ["model", about.name && <bdi>{String(about.name)}</bdi>],
        ["read at", site(about.site)],
        ["layers", layers.map((l) => l.layer).join(", ") || undefined],
        ["features", layers.length ? `${[...new Set(layers.map((l) => count(l.n_features)))].join(", ")} a layer` : undefined],
        ["never fire here", all ? percent(dead / all, 1) : undefined],
        ["active a token (L0)", range(l0, (v) => v.toFixed(0))],
        ["variance explained", range(fit, (v) => percent(v))],
      ]} />
    </div>
  );
}

export function Overview({ address }) {
  const { core } = run;
  const choice = chosen(address);
  const grid = gridOf({ ...choice, control: "trained" });
  const ref = useRef(null);
  const width = useWidth(ref);
  const split = width > 860 && (grid?.layersB.length ?? 0) <= 12;
  const scale = commonScale({ ...choice, control: "trained" });
  const tokens = [...new Set(core.text.map((t) => count(t.n_tokens)))].join(", ");
  const source = core.study?.text?.source;
  return (
    <section aria-labelledby="overview-title" ref={ref}>
      <h2 id="overview-title" class="lead"><bdi>{short((core.models.a ?? core.study.model_a)?.name) || "A"}</bdi> and <bdi>{short((core.models.b ?? core.study.model_b)?.name) || "B"}</bdi>: do they share features?</h2>
      <div class="verdict">
        {core.verdict.map((sentence, i) => <p key={i}>{sentence}</p>)}
      </div>
      {core.warnings.length > 0 && (
        <div class="warnings" role="note" aria-label="Warnings">
          <h3>Before you believe it</h3>
          <ul>{core.warnings.map((w, i) => <li key={i}>{w}</li>)}</ul>
        </div>
      )}
      {(core.missing.length > 0 || core.left_out > 0) && <Missing />}
      <div class="cards">
        <SideCard side="a" />
        <SideCard side="b" />
        <div class="card">
          <h3>Text and design</h3>
          <Pairs of={[
            ["text", source && <bdi>{typeof source === "string" ? short(source) : JSON.stringify(source)}</bdi>],
            ["tokens", core.text.length > 1 ? `${tokens} in each of ${core.text.length} runs` : tokens],
            ["a document is a", core.text[0]?.unit],
            ["seeds", core.seeds.join(", ")],
            ["matched by", core.metrics.map(name).join(", ")],
            ["controls", core.controls.filter((c) => c !== "trained").map(name).join(", ") || "none"],
            ["measures", core.measures.join(", ") || undefined],
            ["nulls", core.nulls.map(name).join(", ") || undefined],
          ]} />
        </div>
      </div>
      {grid && grid.cells.size > 0 && (
        <div class={split ? "grid-layout split" : "grid-layout"}>
          <Figure title={`${quantityTold(choice)}, layer by layer`} file="overview_grid"
            note={<>A click opens the cell: its pairs, its chance, its features. <a href={link({ view: "grid" })}>All switches</a></>} rows={() => gridRows(grid)}>
            <Heat grid={grid} scale={scale} width={split ? width * 0.52 - 40 : width - 40}
              label={`${quantityTold(choice)}, layer by layer`}
              onOpen={(a, b) => go({ view: "cell", cell: `${a}-${b}`, pair: undefined })} />
            <Legend scale={scale} value={choice.value} />
          </Figure>
          <Strips choice={choice} width={split ? width * 0.44 - 30 : width - 36} />
        </div>
      )}
      {run.tables.verdict_shares && <VerdictBars width={width} />}
    </section>
  );
}

/** What the run's folder or the page does not hold. */
export function Missing() {
  const { core } = run;
  const byWhy = new Map();
  for (const { what, why } of core.missing) {
    if (!byWhy.has(why)) byWhy.set(why, []);
    byWhy.get(why).push(what);
  }
  return (
    <details class="missing" open={core.missing.length > 0}>
      <summary>What is missing from this page</summary>
      <ul>
        {[...byWhy].map(([why, whats]) => (
          <li key={why}>{whats.slice(0, 8).join(", ")}{whats.length > 8 ? ` and ${whats.length - 8} more` : ""}: {why}</li>
        ))}
        {core.left_out > 0 && (
          <li>{count(core.left_out)} blocks of cells and features found no room; <code>saelign report RUN --size 100MiB</code> takes more.</li>
        )}
      </ul>
    </details>
  );
}

export { sideTold };
