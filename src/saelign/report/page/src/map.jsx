// Both dictionaries as linked maps: decoder rows on their two first principal components.

import { useMemo, useRef, useState } from "preact/hooks";
import { known } from "./blocks.js";
import { CellPicker, cellAt } from "./cell.jsx";
import { scaleOf } from "./colour.js";
import { chosen, realControl, sideTold, sidesOf } from "./data.js";
import { usePairs } from "./features.jsx";
import { Figure } from "./figure.jsx";
import { name, score, visible } from "./format.js";
import { Absent, Choice, Hover, useWidth } from "./parts.jsx";
import { VERDICTS } from "./overview.jsx";
import { go } from "./state.js";

const NEAR = 14;

export function MapView({ address }) {
  const choice = chosen(address);
  const cell = cellAt(choice);
  if (!cell) return <section><h2>Map</h2><Absent>The run holds no layer pair yet.</Absent></section>;
  return (
    <section aria-labelledby="map-title">
      <h2 id="map-title">Map of both dictionaries</h2>
      <CellPicker choice={choice} cell={cell} view="map" />
      <Maps choice={choice} cell={cell} address={address} />
    </section>
  );
}

function Maps({ choice, cell, address }) {
  const pairs = usePairs(choice, cell);
  const ref = useRef(null);
  const width = useWidth(ref);
  const [hover, setHover] = useState(null);
  const concepts = pairs?.fa ? [...new Set([...known(pairs.fa, "concepts"), ...known(pairs.fb, "concepts")]
    .flatMap((t) => t.split("\t")).filter(Boolean))].sort() : [];
  const by = ["correlation", "verdict"].includes(address.by) ? address.by
    : concepts.includes(address.by) ? address.by : "correlation";
  const size = Math.max(240, Math.min(560, width > 700 ? Math.floor((width - 60) / 2) : width - 36));
  const model = useMemo(() => (pairs?.block && pairs.fa?.columns.decoder_x ? linked(pairs) : null), [pairs]);
  const images = useMemo(() => (model ? [0, 1].map((k) => picture(model, k, size, by, pairs)) : null), [model, size, by]);
  let body;
  if (pairs === null) body = <p class="wait">Opening …</p>;
  else if (!model) body = <Absent>The page holds no map of these layers: they found no room, or the run was written before maps were kept.</Absent>;
  else {
    const [sideA, sideB] = sidesOf(realControl(choice).control);
    const at = (k, f) => place(model, k, f, size);
    const over = (event, k) => {
      const box = event.currentTarget.getBoundingClientRect();
      const f = nearest(model, k, event.clientX - box.left, event.clientY - box.top - 22, size);
      setHover(f === null ? null : { k, f, at: { x: event.clientX, y: event.clientY } });
    };
    const link = hover ? model.partner[hover.k].get(hover.f) : undefined;
    const shownOf = (k) => (hover ? (hover.k === k ? [hover.f] : (link ?? []).map((l) => l.other)) : []);
    const openPair = (k, f) => {
      const first = model.partner[k].get(f)?.[0];
      if (!first) return;
      const [a, b] = k === 0 ? [f, first.other] : [first.other, f];
      go({ view: "features", cell: undefined, pair: `${cell.a}-${cell.b}:${a}-${b}` });
    };
    body = (
      <Figure wide title="Decoder rows on their two first principal components" file={`map_A${cell.a}_B${cell.b}`}
        note="Each side has axes of its own; B's are turned so that partners lie alike. Point at a feature to see its partner, click to open the pair. The same pairs stand as a list under Features."
        rows={() => mapRows(model, pairs)}>
        <div class="maps">
          {[0, 1].map((k) => (
            <svg key={k} data-figure width={size} height={size + 24} role="img"
              aria-label={`Map of ${model.points[k].length} features of ${sideTold(k ? sideB : sideA)}`}
              onPointerMove={(e) => over(e, k)} onPointerLeave={() => setHover(null)}
              onClick={() => hover && openPair(hover.k, hover.f)} class="map">
              <text x="0" y="13" class="axis strong">{sideTold(k ? sideB : sideA)}, layer {k ? cell.b : cell.a}</text>
              <rect x="0.5" y="22.5" width={size - 1} height={size - 1} rx="6" class="ground" />
              <text x={size - 8} y={size + 14} class="axis" text-anchor="end">first component →</text>
              <text transform={`translate(16 30) rotate(-90)`} class="axis" text-anchor="end">second component →</text>
              <image href={images[k]} x="0" y="22" width={size} height={size} />
              {shownOf(k).map((f) => {
                const [x, y] = at(k, f);
                return <circle key={f} cx={x} cy={y + 22} r="7" class="spot" />;
              })}
            </svg>
          ))}
        </div>
        <Keys by={by} model={model} />
        <Hover at={hover?.at}>
          {hover && <Told pairs={pairs} hover={hover} link={link} />}
        </Hover>
      </Figure>
    );
  }
  return (
    <div ref={ref}>
      <div class="switches" role="group" aria-label="Colours of the map">
        <Choice label="Colour by" value={by} onChange={(v) => go({ view: "map", by: v }, { quietly: true })}
          options={[["correlation", "correlation of the pair"], ["verdict", "verdict"],
            ...concepts.map((c) => [c, `concept: ${c}`])]} />
      </div>
      {body}
    </div>
  );
}

function Told({ pairs, hover, link }) {
  const mine = hover.k === 0 ? pairs.fa : pairs.fb;
  const other = hover.k === 0 ? pairs.fb : pairs.fa;
  const told = (features, f) => <bdi>{visible((features?.columns.top_token.get(f) ?? "").slice(0, 40))}</bdi>;
  return (
    <>
      <strong>{hover.k === 0 ? "A" : "B"} {hover.f} {told(mine, hover.f)}</strong>
      {(link ?? []).slice(0, 4).map((l) => (
        <span key={l.other}>{hover.k === 0 ? "B" : "A"} {l.other} {told(other, l.other)}: {score(l.r)}</span>
      ))}
      {!link && <span>not paired</span>}
    </>
  );
}

function Keys({ by, model }) {
  if (by === "verdict") {
    return (
      <ul class="keys">{Object.entries(VERDICTS).map(([v, [colour, told]]) => (
        <li key={v}><svg width="12" height="12" aria-hidden="true"><circle cx="6" cy="6" r="5" fill={colour} /></svg><span>{name(v)}: {told}</span></li>))}
      </ul>
    );
  }
  if (by !== "correlation") {
    return <ul class="keys"><li><svg width="12" height="12" aria-hidden="true"><circle cx="6" cy="6" r="5" fill="#d55e00" /></svg>features of {by}</li></ul>;
  }
  return (
    <svg data-figure width="200" height="30" role="img" aria-label="Colours of correlations from 0 to 1" class="ramp">
      {Array.from({ length: 48 }, (_, i) => <rect key={i} x={4 + i * 4} y="2" width="4.3" height="9" fill={model.scale.colour(i / 47)} />)}
      <text x="4" y="24" class="axis">0</text>
      <text x="100" y="24" class="axis" text-anchor="middle">correlation of the pair</text>
      <text x="196" y="24" class="axis" text-anchor="end">1</text>
    </svg>
  );
}

/** Places, partners, and B's places turned so that partners lie alike. */
function linked(pairs) {
  const sides = [pairs.fa, pairs.fb];
  const xy = sides.map((features) => Array.from({ length: features.n }, (_, f) =>
    [features.columns.decoder_x.get(f), features.columns.decoder_y.get(f)]));
  const partner = [new Map(), new Map()];
  const sums = [0, 0, 0, 0];
  for (let i = 0; i < pairs.block.n; i++) {
    const [a, b, r] = [pairs.a(i), pairs.b(i), pairs.get("correlation", i)];
    for (const [k, f, other] of [[0, a, b], [1, b, a]]) {
      if (!partner[k].has(f)) partner[k].set(f, []);
      partner[k].get(f).push({ other, r });
    }
    const [[ax, ay], [bx, by]] = [xy[0][a], xy[1][b]];
    if ([ax, ay, bx, by].some(Number.isNaN) || r < 0.1) continue;
    sums[0] += ax * bx + ay * by;
    sums[1] += ay * bx - ax * by;
    sums[2] += ax * bx - ay * by;
    sums[3] += ay * bx + ax * by;
  }
  const flip = Math.hypot(sums[2], sums[3]) > Math.hypot(sums[0], sums[1]) ? -1 : 1;
  const turn = flip === 1 ? Math.atan2(sums[1], sums[0]) : Math.atan2(sums[3], sums[2]);
  xy[1] = xy[1].map(([x, y]) => [
    Math.cos(turn) * x - Math.sin(turn) * flip * y, Math.sin(turn) * x + Math.cos(turn) * flip * y]);
  const reach = xy.map((places) => Math.max(1e-6, ...places.flat().filter((v) => !Number.isNaN(v)).map(Math.abs)));
  const points = xy.map((places) => places.flatMap(([x], f) => (Number.isNaN(x) ? [] : [f])));
  return { xy, reach, points, partner, scale: scaleOf([0, 1], "score") };
}

function place(model, k, f, size) {
  const [x, y] = model.xy[k][f];
  const half = size / 2;
  return [half + (x / model.reach[k]) * (half - 14), half - (y / model.reach[k]) * (half - 14)];
}

function nearest(model, k, px, py, size) {
  let best = null;
  let least = NEAR * NEAR;
  for (const f of model.points[k]) {
    const [x, y] = place(model, k, f, size);
    const far = (x - px) ** 2 + (y - py) ** 2;
    if (far < least) [best, least] = [f, far];
  }
  return best;
}

/** The dots as a picture: thousands of them would be slow as elements. */
function picture(model, k, size, by, pairs) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = 2 * size;
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  const features = k === 0 ? pairs.fa : pairs.fb;
  const rank = (f) => {
    if (by === "correlation") return model.partner[k].get(f)?.[0].r ?? -1;
    if (by === "verdict") return 0;
    return (features.columns.concepts?.get(f) ?? "").split("\t").includes(by) ? 1 : 0;
  };
  const radius = model.points[k].length > 4000 ? 1.7 : 2.6;
  for (const f of [...model.points[k]].sort((x, y) => rank(x) - rank(y))) {
    const [x, y] = place(model, k, f, size);
    let colour = "#9aa1ab";
    if (by === "correlation") {
      const r = model.partner[k].get(f)?.[0].r;
      if (r !== undefined) colour = model.scale.colour(Math.max(0, r));
    } else if (by === "verdict") {
      colour = VERDICTS[features.columns.verdict?.get(f)]?.[0] ?? colour;
    } else if (rank(f)) colour = "#d55e00";
    context.globalAlpha = by !== "correlation" && by !== "verdict" && !rank(f) ? 0.35 : 0.85;
    context.fillStyle = colour;
    context.beginPath();
    context.arc(x, y, rank(f) === 1 && by !== "correlation" ? radius + 1.4 : radius, 0, 7);
    context.fill();
  }
  return canvas.toDataURL();
}

function mapRows(model, pairs) {
  return [0, 1].flatMap((k) => model.points[k].map((f) => ({
    side: k ? "B" : "A", feature: f, x: model.xy[k][f][0], y: model.xy[k][f][1],
    partner: model.partner[k].get(f)?.[0].other, correlation: model.partner[k].get(f)?.[0].r,
    top_token: (k ? pairs.fb : pairs.fa).columns.top_token.get(f),
  })));
}
