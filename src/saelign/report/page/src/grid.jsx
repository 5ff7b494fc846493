// The layer grid: every layer of A with every layer of B.

import { useRef, useState } from "preact/hooks";
import { isLight, scaleOf } from "./colour.js";
import {
  MEAN, QUANTITIES, SPREAD, chosen, gridOf, nullsOf, run, sideTold, sidesOf, subspaces, matchingsOf,
} from "./data.js";
import { Figure } from "./figure.jsx";
import { count, name, number, probability, score, z } from "./format.js";
import { Absent, Choice, Hover, useWidth } from "./parts.jsx";
import { go } from "./state.js";

/** A value as its quantity is told. */
export function shown(value, key, kind, digits = 3) {
  if (kind === "p") return probability(value);
  if (kind === "count") return count(value);
  if (key === "z") return z(value);
  return score(value, digits);
}

const comparisonTold = (control) =>
  control.startsWith("minus_") ? `trained \u2212 ${name(control.slice(6))}` : name(control);

export function quantityTold(choice) {
  const about = QUANTITIES[choice.value];
  if (about.of === "scores") {
    const told = choice.value === "score" ? choice.measure : `${about.label}, ${choice.measure}`;
    return choice.value === "score" ? told : `${told}, ${name(choice.null)} null`;
  }
  return `${about.label}${about.kept ? (choice.kept ? ", kept pairs" : ", all pairs") : ""}`;
}

const axesOf = (control) => {
  const [a, b] = sidesOf(control);
  return [`layer of ${sideTold(a)}`, `layer of ${sideTold(b)}`];
};

/** The colour scale of a choice: in common for all comparisons, and for scores and their chance. */
export function commonScale(choice) {
  const about = QUANTITIES[choice.value];
  if (choice.control.startsWith("minus_")) {
    return scaleOf([...(gridOf(choice)?.cells.values() ?? [])].map((c) => c.value), "difference");
  }
  const alike = ["score", "calibrated", "null_mean"].includes(choice.value) && choice.run !== SPREAD
    ? ["score", "calibrated", "null_mean"] : [choice.value];
  const values = run.core.controls.flatMap((control) => alike.flatMap((value) =>
    [...(gridOf({ ...choice, control, value })?.cells.values() ?? [])].map((c) => c.value)));
  return scaleOf(values, about.kind === "p" ? "p" : "score");
}

/** What is said of a cell beside the pointer. */
function CellTold({ cell, grid }) {
  const { choice } = grid;
  const about = QUANTITIES[choice.value];
  return (
    <>
      <strong>A {cell.layer_a} × B {cell.layer_b}</strong>
      <span class="big">{shown(cell.value, choice.value, grid.kind === "difference" ? "score" : about.kind)}
        <small> {quantityTold(choice)}</small></span>
      {about.of === "scores" && grid.kind !== "difference" && (
        <span>
          score {score(cell.score)}, null {score(cell.null_mean)}, calibrated {score(cell.calibrated)}
          <br />p {probability(cell.p)}, q {probability(cell.q)}
          {cell.n_pairs !== undefined && <>, {count(cell.n_pairs)} pairs</>}
          {cell.weak && <><br />does not beat chance after correction</>}
          {cell.note && <><br />{cell.note}</>}
        </span>
      )}
      {about.of === "cells" && cell.n_pairs !== undefined && (
        <span>{count(cell.n_pairs)} pairs, {count(cell.n_kept)} kept</span>
      )}
    </>
  );
}

/** A heat map as an SVG; arrows move, Enter opens. */
export function Heat({ grid, scale, width, onOpen, selected, small = false, label }) {
  const [focus, setFocus] = useState(null);
  const [hover, setHover] = useState(null);
  const svg = useRef(null);
  const { layersA, layersB, cells, choice, kind } = grid;
  const up = [...layersA].reverse();
  const left = small ? 22 : 46;
  const foot = small ? 20 : 40;
  const size = Math.max(small ? 7 : 15, Math.min(small ? 26 : 88, (width - left - 6) / layersB.length));
  const high = Math.min(size, small ? 22 : 58);
  const w = left + size * layersB.length + 6;
  const h = 4 + high * up.length + foot;
  const step = Math.max(1, Math.ceil((small ? 14 : 20) / size));
  const told = QUANTITIES[choice.value];
  const kindTold = kind === "difference" ? "score" : told.kind;
  const digits = size < 46 ? 2 : 3;
  const [axisA, axisB] = axesOf(choice.control);
  const pattern = `hatch-${choice.control}-${small ? "s" : "l"}`;
  const at = (a, b) => `${a}-${b}`;
  const first = selected && cells.has(selected) ? selected : at(up[0], layersB[0]);
  const current = focus && cells.has(focus) ? focus : first;

  function move(event, a, b) {
    const i = up.indexOf(a);
    const j = layersB.indexOf(b);
    const to = { ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1],
      ArrowRight: [i, j + 1], Home: [i, 0], End: [i, layersB.length - 1] }[event.key];
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      onOpen(a, b);
    } else if (event.key === "Escape") {
      setHover(null);
    } else if (to) {
      event.preventDefault();
      const next = at(up[Math.max(0, Math.min(up.length - 1, to[0]))],
        layersB[Math.max(0, Math.min(layersB.length - 1, to[1]))]);
      setFocus(next);
      svg.current.querySelector(`[data-cell="${next}"]`)?.focus();
    }
  }

  const place = (element) => {
    const box = element.getBoundingClientRect();
    return { x: box.right - 8, y: box.bottom - 12 };
  };

  return (
    <>
      <svg ref={svg} data-figure width={w} height={h} viewBox={`0 0 ${w} ${h}`}
        class={small ? "heat small" : "heat"} role={small ? "img" : "grid"} aria-label={label}
        aria-rowcount={small ? undefined : up.length}
        aria-colcount={small ? undefined : layersB.length}>
        <defs>
          <pattern id={pattern} width="6" height="6" patternUnits="userSpaceOnUse"
            patternTransform="rotate(45)">
            <line x1="0" y1="0" x2="0" y2="6" stroke="#fff" stroke-opacity=".55" stroke-width="1.4" />
            <line x1="3" y1="0" x2="3" y2="6" stroke="#000" stroke-opacity=".3" stroke-width="1.2" />
          </pattern>
        </defs>
        {up.map((a, i) => (
          <g role={small ? undefined : "row"} key={a}>
            {(up.length - 1 - i) % Math.max(1, Math.ceil((small ? 11 : 14) / high)) === 0 && (
              <text x={left - 6} y={4 + i * high + high / 2} class="axis" text-anchor="end"
                dominant-baseline="central" aria-hidden="true">{a}</text>
            )}
            {layersB.map((b, j) => {
              const cell = cells.get(at(a, b));
              const value = cell?.value;
              const colour = scale.colour(value);
              const key = at(a, b);
              const light = colour && isLight(colour);
              const text = shown(value, choice.value, kindTold, digits);
              const x = left + j * size;
              const y = 4 + i * high;
              return (
                <g key={b} data-cell={key} role={small ? undefined : "gridcell"}
                  tabIndex={small ? undefined : key === current ? 0 : -1}
                  class={`cell${key === selected ? " selected" : ""}`}
                  aria-label={small ? undefined : `A ${a}, B ${b}: ${quantityTold(choice)} ${text}${cell?.weak ? ", does not beat chance" : ""}`}
                  onClick={() => onOpen(a, b)}
                  onKeyDown={(e) => move(e, a, b)}
                  onFocus={(e) => !small && (setFocus(key), cell && setHover({ cell, at: place(e.currentTarget) }))}
                  onBlur={() => setHover(null)}
                  onPointerMove={(e) => cell && setHover({ cell, at: { x: e.clientX, y: e.clientY } })}
                  onPointerLeave={() => setHover(null)}>
                  <rect x={x} y={y} width={size - 1} height={high - 1} rx={small ? 1 : 3}
                    fill={colour ?? "none"} class={colour ? "" : "none"} />
                  {cell?.weak && colour && (
                    <rect x={x} y={y} width={size - 1} height={high - 1} rx={small ? 1 : 3}
                      fill={`url(#${pattern})`} pointer-events="none" />
                  )}
                  {!small && size >= 34 && high >= 17 && (
                    <>
                      {cell?.weak && colour && (
                        <rect x={x + size / 2 - 0.5 - text.length * 3.7 - 2} y={y + high / 2 - 9}
                          width={text.length * 7.4 + 4} height="17" rx="3" fill={colour}
                          pointer-events="none" />
                      )}
                      <text x={x + (size - 1) / 2} y={y + (high - 1) / 2} text-anchor="middle"
                        dominant-baseline="central" pointer-events="none" class="ink"
                        fill={colour ? (light ? "#111" : "#fff") : "currentColor"}>{text}</text>
                    </>
                  )}
                  <rect x={x - 0.5} y={y - 0.5} width={size} height={high} rx="3" class="ring"
                    fill="none" pointer-events="none" />
                </g>
              );
            })}
          </g>
        ))}
        <g aria-hidden="true">
          {layersB.map((b, j) => j % step === 0 && (
            <text key={b} x={left + j * size + (size - 1) / 2} y={4 + high * up.length + 14}
              class="axis" text-anchor="middle">{b}</text>
          ))}
          {!small && (
            <>
              <text x={left + (size * layersB.length) / 2} y={h - 6} class="axis name"
                text-anchor="middle">{axisB}</text>
              <text transform={`translate(12 ${4 + (high * up.length) / 2}) rotate(-90)`}
                class="axis name" text-anchor="middle">{axisA}</text>
            </>
          )}
        </g>
      </svg>
      <Hover at={hover?.at}>{hover && <CellTold cell={hover.cell} grid={grid} />}</Hover>
    </>
  );
}

/** What the colours mean. */
export function Legend({ scale, value, hatched = true }) {
  const n = 64;
  const [low, high] = scale.domain;
  const at = (share) => scale.kind === "p"
    ? low * (high / low) ** share : low + (high - low) * share;
  const ends = scale.kind === "p" ? [low, Math.sqrt(low * high), high] : [low, (low + high) / 2, high];
  const told = (v) => scale.kind === "p" ? probability(v)
    : QUANTITIES[value].kind === "count" ? count(v) : value === "z" ? number(v) : score(v, 2);
  return (
    <div class="legend">
      <svg data-figure width="208" height="34" role="img"
        aria-label={`Colours from ${told(low)} to ${told(high)}`}>
        {Array.from({ length: n }, (_, i) => (
          <rect key={i} x={4 + (i * 200) / n} y="2" width={200 / n + 0.5} height="11"
            fill={scale.colour(at((i + 0.5) / n))} />
        ))}
        {ends.map((v, i) => (
          <text key={i} x={4 + 100 * i} y="27" class="axis"
            text-anchor={["start", "middle", "end"][i]}>{told(v)}</text>
        ))}
      </svg>
      {hatched && (
        <span class="hatched"><i class="swatch" /> hatched: does not beat chance after correction (q ≥ .05)</span>
      )}
    </div>
  );
}

/** Every switch of the grid. */
export function Switches({ choice }) {
  const { core } = run;
  const about = QUANTITIES[choice.value];
  const ofScores = about.of === "scores";
  const set = (key) => (value) => go({ [key]: value, view: "grid" }, { quietly: true });
  const controls = [...core.controls, ...core.controls
    .filter((c) => ["untrained", "document_shift"].includes(c)).map((c) => `minus_${c}`)];
  const runs = core.seeds.map((seed, i) => [String(i), `seed ${seed}`]);
  if (runs.length > 1) runs.unshift([MEAN, `mean of ${runs.length} seeds`], [SPREAD, "spread over seeds"]);
  const spaces = subspaces();
  const quantities = Object.entries(QUANTITIES).filter(([, q]) => q.of === "cells" || core.measures.length);
  return (
    <div class="switches" role="group" aria-label="What the grid shows">
      <Choice label="Show" value={choice.value} onChange={set("value")}
        options={quantities.map(([key, q]) => [key, q.label])} />
      <Choice label="Measure" value={choice.measure} disabled={!ofScores} onChange={set("measure")}
        options={core.measures.map((m) => [m, m])} />
      <Choice label="Null" value={choice.null} disabled={!ofScores} onChange={set("null")}
        options={nullsOf(choice.subspace).map((n) => [n, name(n)])} />
      <Choice label="Comparison" value={choice.control} onChange={set("control")}
        options={controls.map((c) => [c, comparisonTold(c)])} />
      <Choice label="Matching" value={choice.matching} onChange={set("matching")}
        options={matchingsOf().map((m) => [m, name(m)])} />
      {core.metrics.length > 1 && (
        <Choice label="Matched by" value={choice.metric} onChange={set("metric")}
          options={core.metrics.map((m) => [m, name(m)])} />
      )}
      <Choice label="Pairs" value={choice.kept || ofScores ? "1" : "0"} disabled={!about.kept}
        onChange={set("kept")}
        options={[["0", "all pairs"], ["1", "kept by the filters"]]} />
      <Choice label="Run" value={choice.run} onChange={set("run")} options={runs} />
      {spaces.length > 0 && (
        <Choice label="Features" value={choice.subspace} onChange={set("subspace")}
          options={[["", "all features"], ...spaces.map((s) => [s, s])]} />
      )}
    </div>
  );
}

/** The rows of a grid, for a file. */
export function gridRows(grid) {
  return [...grid.cells.values()].map((cell) => ({
    comparison: grid.choice.control, matching: grid.choice.matching, run: grid.choice.run,
    quantity: quantityTold(grid.choice), layer_a: cell.layer_a, layer_b: cell.layer_b,
    value: cell.value, score: cell.score, null_mean: cell.null_mean, calibrated: cell.calibrated,
    p: cell.p, q: cell.q, n_pairs: cell.n_pairs, n_kept: cell.n_kept,
  }));
}

export function GridView({ address }) {
  const choice = chosen(address);
  const grid = gridOf(choice);
  const ref = useRef(null);
  const width = useWidth(ref);
  const scale = commonScale(choice);
  const { core } = run;
  const open = (a, b) => go({ view: "cell", cell: `${a}-${b}`, pair: undefined });
  const others = [...core.controls, ...core.controls
    .filter((c) => ["untrained", "document_shift"].includes(c)).map((c) => `minus_${c}`)];
  const split = others.length > 1 && width > 860 && (grid?.layersB.length ?? 0) <= 8;
  const empty = !grid || grid.cells.size === 0;
  const title = `${quantityTold(choice)} \u00b7 ${comparisonTold(choice.control)}`;
  return (
    <section aria-labelledby="grid-title" ref={ref}>
      <h2 id="grid-title">Layer grid</h2>
      <Switches choice={choice} />
      <div class={split ? "grid-layout split" : "grid-layout"}>
        {empty ? (
          <Absent>The run holds no such numbers{run.core.complete ? "." : ": it was not finished."}</Absent>
        ) : (
          <>
            <Figure wide title={title} file={`grid_${choice.measure}_${choice.value}_${choice.control}`}
              note={`${name(choice.matching)}${choice.subspace ? `, features of ${choice.subspace}` : ""}. Arrows move from cell to cell; a click or Enter opens one.`}
              rows={() => gridRows(grid)}>
              <Heat grid={grid} scale={scale} width={split ? width * 0.52 - 40 : width - 40} onOpen={open} label={title}
                selected={choice.cell ? `${choice.cell.a}-${choice.cell.b}` : null} />
              <Legend scale={scale} value={choice.value}
                hatched={QUANTITIES[choice.value].of === "scores" && grid.kind !== "difference"} />
            </Figure>
            {others.length > 1 && (
              <div class="beside">
                <h3>The same quantity in every comparison, on one colour scale</h3>
                <p class="note">Differences have a scale of their own: white is none, purple is more in trained models, orange less.</p>
                <div class="multiples">
                  {others.map((control) => {
                    const one = gridOf({ ...choice, control });
                    if (!one || one.cells.size === 0) return null;
                    const own = control.startsWith("minus_")
                      ? scaleOf([...one.cells.values()].map((c) => c.value), "difference") : (choice.control.startsWith("minus_") ? commonScale({ ...choice, control }) : scale);
                    const told = comparisonTold(control);
                    const none = [...one.cells.values()].every((c) => !Number.isFinite(c.value));
                    return (
                      <div key={control} class={control === choice.control ? "multiple on" : "multiple"}>
                        <button type="button" class="quiet" aria-pressed={control === choice.control}
                          onClick={() => go({ control, view: "grid" }, { quietly: true })}>{told}</button>
                        {none ? <p class="note">no cell has this number</p> : <Heat small grid={one} scale={own} width={190} label={`${told}: ${quantityTold(choice)}`}
                          onOpen={() => go({ control, view: "grid" }, { quietly: true })} />}
                      </div>
                    );
                  })}
                </div>
              </div>
            )}
          </>
        )}
      </div>
    </section>
  );
}
