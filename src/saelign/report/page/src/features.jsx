// The feature browser: matched features side by side, with what each fires on.

import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { has, known, starts } from "./blocks.js";
import { CellPicker, cellAt } from "./cell.jsx";
import { cellName, chosen, realControl, run, runIndex, sideTold, sidesOf } from "./data.js";
import { CsvButton } from "./figure.jsx";
import { count, missing, name, number, rate, score, short, visible } from "./format.js";
import { Absent, Choice, useBlocks } from "./parts.jsx";
import { go, link } from "./state.js";

const ROW = 34;
const SORTS = {
  correlation: ["correlation", (p, i) => -p.get("correlation", i)],
  within_token: ["within-token correlation", (p, i) => -p.get("within_token", i)],
  margin: ["margin to the second best", (p, i) => -p.get("margin", i)],
  rate_a: ["firing rate of A", (p, i) => -(p.fa?.columns.n_active.get(p.a(i)) ?? 0)],
  rate_b: ["firing rate of B", (p, i) => -(p.fb?.columns.n_active.get(p.b(i)) ?? 0)],
  feature_a: ["number of A's feature", (p, i) => p.a(i)],
  feature_b: ["number of B's feature", (p, i) => p.b(i)],
};

/** Names of the blocks of a cell's features. */
function placesOf(choice, cell) {
  const [sideA, sideB] = sidesOf(realControl(choice).control);
  const index = runIndex(choice);
  return [`${sideA}/${index}/${cell.a}`, `${sideB}/${index}/${cell.b}`];
}

/** The pairs of a cell with their features; null while they open. */
export function usePairs(choice, cell) {
  const [placeA, placeB] = placesOf(choice, cell);
  const blocks = useBlocks([`pairs/${cellName(choice, cell)}`, `features/${placeA}`, `features/${placeB}`]);
  return useMemo(() => {
    if (blocks === null) return null;
    const [block, fa, fb] = blocks;
    return {
      block, fa, fb, placeA, placeB,
      a: (i) => block.columns.a.numbers[i],
      b: (i) => block.columns.b.numbers[i],
      get: (column, i) => block.columns[column].get(i),
      mutual: (i) => block.columns.mutual.numbers[i] === 1,
      reason: (i) => block.columns.reason.get(i),
    };
  }, blocks ?? [null]);
}

const tokenOf = (features, feature) => features?.columns.top_token.get(feature) ?? "";
const conceptsOf = (features, feature) => {
  const told = features?.columns.concepts?.get(feature);
  return told ? told.split("\t") : [];
};

/** A few pairs as a table. */
export function PairRows({ pairs, shown, cell }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Strongest kept pairs">
      <table class="numbers">
        <thead><tr><th scope="col">A's feature</th><th scope="col" class="text">B's feature</th>
          <th scope="col">correlation</th><th scope="col">within-token</th><th scope="col">margin</th>
          <th scope="col">mutual best</th></tr></thead>
        <tbody>
          {shown.map((i) => (
            <tr key={i}>
              <td class="text"><a href={link({ view: "features", cell: undefined, pair: `${cell.a}-${cell.b}:${pairs.a(i)}-${pairs.b(i)}` })}>{pairs.a(i)}</a>{" "}
                <Token text={tokenOf(pairs.fa, pairs.a(i))} /></td>
              <td class="text">{pairs.b(i)} <Token text={tokenOf(pairs.fb, pairs.b(i))} /></td>
              <td>{score(pairs.get("correlation", i))}</td>
              <td>{score(pairs.get("within_token", i))}</td>
              <td>{score(pairs.get("margin", i))}</td>
              <td>{pairs.mutual(i) ? "yes" : "no"}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

/** A token, its blanks made visible. */
const Token = ({ text }) => (text === "" ? null
  : <bdi class="token" title={text.length > 24 ? text.slice(0, 200) : undefined}>{visible(text.slice(0, 80))}</bdi>);

export function FeaturesView({ address }) {
  const choice = chosen(address);
  const cell = cellAt(choice);
  if (!cell) return <section><h2>Features</h2><Absent>The run holds no layer pair yet.</Absent></section>;
  return (
    <section aria-labelledby="features-title">
      <h2 id="features-title">Matched features</h2>
      <CellPicker choice={choice} cell={cell} view="features" />
      <Browser key={cellName(choice, cell)} choice={choice} cell={cell} address={address} />
    </section>
  );
}

function Browser({ choice, cell, address }) {
  const pairs = usePairs(choice, cell);
  const search = address.q ?? "";
  const sort = SORTS[address.sort] ? address.sort : "correlation";
  const filter = address.show ?? "all";
  const concept = address.concept ?? "";
  const [placeA, placeB] = placesOf(choice, cell);
  const contexts = useBlocks([`contexts/${placeA}`, `contexts/${placeB}`]);
  const set = (change) => go({ view: "features", cell: `${cell.a}-${cell.b}`, ...change }, { quietly: true });
  const found = useMemo(
    () => (pairs?.block ? select(pairs, contexts, { search, sort, filter, concept }) : []),
    [pairs, contexts?.[0], contexts?.[1], search, sort, filter, concept]);
  if (pairs === null) return <p class="wait">Opening the features …</p>;
  if (!pairs.block) {
    const why = has(`pairs/${cellName(choice, cell)}`) ? "" : " They found no room (say --size), or the run has no such cell.";
    return <Absent>The matched features of this cell are not in the page.{why}</Absent>;
  }
  const wanted = choice.pair;
  const at = wanted ? found.findIndex((i) => pairs.a(i) === wanted[0] && pairs.b(i) === wanted[1]) : -1;
  const all = wanted && at === -1
    ? [...Array(pairs.block.n).keys()].find((i) => pairs.a(i) === wanted[0] && pairs.b(i) === wanted[1]) : undefined;
  const isNone = wanted && at === -1 && all === undefined;
  const place = wanted && !isNone ? at : 0;
  const current = at >= 0 ? found[at] : all ?? found[0];
  const show = (place) => {
    const i = found[Math.max(0, Math.min(found.length - 1, place))];
    if (i === undefined) return;
    go({ view: "features", cell: undefined, pair: `${cell.a}-${cell.b}:${pairs.a(i)}-${pairs.b(i)}` }, { quietly: true });
  };
  const concepts = [...new Set([...(known(pairs.fa, "concepts")), ...(known(pairs.fb, "concepts"))]
    .flatMap((told) => told.split("\t")).filter(Boolean))].sort();
  return (
    <>
      <div class="switches search" role="search" aria-label="Pairs">
        <label class="choice grow"><span>Token or feature number</span>
          <input type="search" value={search} placeholder="token, A12, B34, 12"
            onInput={(e) => set({ q: e.currentTarget.value, pair: undefined })} /></label>
        <Choice label="Order by" value={sort} onChange={(v) => set({ sort: v, pair: undefined })}
          options={Object.entries(SORTS).map(([key, [told]]) => [key, told])} />
        <Choice label="Pairs" value={filter} onChange={(v) => set({ show: v, pair: undefined })}
          options={[["all", "all pairs"], ["kept", "kept"], ["mutual", "mutual best"],
            ["dropped", "dropped by a filter"]]} />
        {concepts.length > 0 && (
          <Choice label="Concept" value={concept} onChange={(v) => set({ concept: v, pair: undefined })}
            options={[["", "any"], ...concepts.map((c) => [c, c])]} />
        )}
      </div>
      {isNone && <Absent>A {wanted[0]} and B {wanted[1]} are no pair of this cell; another is shown.</Absent>}
      <div class="browser">
        <div class="list">
          <p class="note" role="status">{count(found.length)} of {count(pairs.block.n)} pairs{" "}
            <CsvButton label="CSV" file={`pairs_A${cell.a}_B${cell.b}_${choice.control}`} rows={() => found.map((i) => ({
              feature_a: pairs.a(i), feature_b: pairs.b(i), correlation: pairs.get("correlation", i),
              within_token: pairs.get("within_token", i), margin: pairs.get("margin", i),
              mutual: pairs.mutual(i), reason: pairs.reason(i),
              top_token_a: tokenOf(pairs.fa, pairs.a(i)), top_token_b: tokenOf(pairs.fb, pairs.b(i)),
            }))} /></p>
          {found.length === 0 ? <Absent>No pair fits.</Absent>
            : <List pairs={pairs} found={found} at={Math.max(0, place)} show={show} />}
        </div>
        {current === undefined ? <Absent>No pair to show.</Absent> : (
          <Pair pairs={pairs} i={current} contexts={contexts} choice={choice} cell={cell}
            place={place} n={found.length} show={show} />
        )}
      </div>
    </>
  );
}

/** The pairs that fit, in the order asked for. */
function select(pairs, contexts, { search, sort, filter, concept }) {
  const { n } = pairs.block;
  const words = search.trim().toLowerCase();
  const numbered = /^([ab]?)\s*#?(\d+)$/i.exec(words);
  const holders = words && !numbered
    ? [holding(pairs.fa, contexts?.[0], words), holding(pairs.fb, contexts?.[1], words)] : null;
  const found = [];
  for (let i = 0; i < n; i++) {
    const a = pairs.a(i);
    const b = pairs.b(i);
    if (filter === "kept" && pairs.reason(i) !== "") continue;
    if (filter === "dropped" && pairs.reason(i) === "") continue;
    if (filter === "mutual" && !pairs.mutual(i)) continue;
    if (concept && !conceptsOf(pairs.fa, a).includes(concept) && !conceptsOf(pairs.fb, b).includes(concept)) continue;
    if (numbered) {
      const wanted = Number(numbered[2]);
      const side = numbered[1];
      if (!((side !== "b" && a === wanted) || (side !== "a" && b === wanted))) continue;
    }
    if (holders && !holders[0].has(a) && !holders[1].has(b)) continue;
    found.push(i);
  }
  const key = SORTS[sort][1];
  const keys = new Float64Array(n);
  for (const i of found) {
    const value = key(pairs, i);
    keys[i] = Number.isNaN(value) ? Infinity : value;
  }
  return found.sort((x, y) => keys[x] - keys[y] || x - y);
}

/** Features one of whose top tokens holds a text. */
function holding(features, contexts, words) {
  const found = new Set();
  if (contexts) {
    const { token, count: counts, length, at } = contexts.columns;
    const fits = new Set(token.values.map((t, code) => [t, code])
      .filter(([t]) => t.toLowerCase().includes(words)).map(([, code]) => code));
    let k = 0;
    let begin = 0;
    for (let feature = 0; feature < counts.n; feature++) {
      for (let c = 0; c < counts.numbers[feature]; c++, k++) {
        if (fits.has(token.numbers[begin + at.numbers[k]])) found.add(feature);
        begin += length.numbers[k];
      }
    }
  } else if (features) {
    for (let f = 0; f < features.n; f++) {
      if (tokenOf(features, f).toLowerCase().includes(words)) found.add(f);
    }
  }
  return found;
}

/** The pairs in a list of which only what is seen is drawn. */
function List({ pairs, found, at, show }) {
  const ref = useRef(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(560);
  useEffect(() => {
    const box = ref.current;
    setHeight(box.clientHeight);
    const observer = new ResizeObserver(() => setHeight(box.clientHeight));
    observer.observe(box);
    return () => observer.disconnect();
  }, []);
  useEffect(() => {
    const box = ref.current;
    const y = at * ROW;
    if (y < box.scrollTop || y + ROW > box.scrollTop + box.clientHeight) {
      box.scrollTop = Math.max(0, y - box.clientHeight / 2);
    }
  }, [at, found]);
  useEffect(() => {
    const onKey = (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.closest?.("input, select, textarea")) return;
      const inside = ref.current.contains(document.activeElement);
      const step = { j: 1, n: 1, k: -1, p: -1 }[event.key]
        ?? (inside ? { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -found.length, End: found.length }[event.key] : undefined);
      if (step === undefined) return;
      event.preventDefault();
      show(at + step);
    };
    window.addEventListener("keydown", onKey);
    return () => window.removeEventListener("keydown", onKey);
  }, [at, found, show]);
  const first = Math.max(0, Math.floor(top / ROW) - 6);
  const last = Math.min(found.length, Math.ceil((top + height) / ROW) + 6);
  return (
    <div class="rows" ref={ref} tabIndex={0} role="listbox" aria-label="Matched features; arrows move"
      aria-activedescendant={at >= first && at < last ? `pair-${at}` : undefined}
      onScroll={(e) => setTop(e.currentTarget.scrollTop)}>
      <div class="spacer" role="presentation" style={{ height: `${found.length * ROW}px` }}>
        {found.slice(first, last).map((i, k) => {
          const place = first + k;
          const reason = pairs.reason(i);
          return (
            <div key={place} id={`pair-${place}`} role="option" aria-selected={place === at}
              aria-setsize={found.length} aria-posinset={place + 1}
              class={`row${reason ? " dropped" : ""}`} style={{ top: `${place * ROW}px` }}
              onClick={() => show(place)}>
              <span class="r">{score(pairs.get("correlation", i), 2)}</span>
              <span class="f"><b class="a">{pairs.a(i)}</b> <Token text={tokenOf(pairs.fa, pairs.a(i))} /></span>
              <span class="f"><b class="b">{pairs.b(i)}</b> <Token text={tokenOf(pairs.fb, pairs.b(i))} /></span>
            </div>
          );
        })}
      </div>
    </div>
  );
}

/** Two cards, A's feature and B's, with what holds of the pair above them. */
function Pair({ pairs, i, contexts, choice, cell, place, n, show }) {
  const a = pairs.a(i);
  const b = pairs.b(i);
  const reason = pairs.reason(i);
  const [sideA, sideB] = sidesOf(realControl(choice).control);
  return (
    <div class="pair">
      <div class="about">
        <ul class="facts">
          <li><span>correlation</span><strong>{score(pairs.get("correlation", i))}</strong></li>
          <li><span>within-token</span><strong>{score(pairs.get("within_token", i))}</strong></li>
          <li><span>margin</span><strong>{score(pairs.get("margin", i))}</strong></li>
          <li><span>mutual best</span><strong>{pairs.mutual(i) ? "yes" : "no"}</strong></li>
          <li><span>filters</span><strong class={reason ? "bad long" : "good"}>{reason ? name(reason) : "kept"}</strong></li>
        </ul>
        <div class="steps" role="group" aria-label="Other pairs">
          <button type="button" onClick={() => show(place - 1)} disabled={place <= 0}>← Previous <kbd>k</kbd></button>
          <span class="place">{place >= 0 ? `${count(place + 1)} of ${count(n)}` : "not in the list"}</span>
          <button type="button" onClick={() => show(place + 1)} disabled={place >= n - 1}>Next <kbd>j</kbd> →</button>
          <a href={link({ view: "features", cell: undefined, pair: `${cell.a}-${cell.b}:${a}-${b}` })}>Link to this pair</a>
        </div>
      </div>
      <div class="two">
        <Feature side={sideA} layer={cell.a} feature={a} features={pairs.fa} contexts={contexts?.[0]} opening={contexts === null} />
        <Feature side={sideB} layer={cell.b} feature={b} features={pairs.fb} contexts={contexts?.[1]} opening={contexts === null} />
      </div>
    </div>
  );
}

/** A feature: how often it fires, what it speaks for, its top contexts. */
function Feature({ side, layer, feature, features, contexts, opening }) {
  const letter = side[0];
  const model = run.core.models[side] ?? run.core.models[letter] ?? {};
  const sae = model.saes?.[layer];
  const where = typeof sae === "object" ? sae?.neuronpedia : null;
  const at = (column) => features?.columns[column]?.get(feature);
  const concepts = conceptsOf(features, feature);
  const spoken = spokenFor(features, feature);
  return (
    <article class={`feature ${letter}`} aria-label={`Feature ${feature} of ${sideTold(side)}, layer ${layer}`}>
      <header>
        <h3><span class={`badge ${letter}`}>{letter.toUpperCase()}</span> {feature}
          <small> layer {layer}{side.length > 1 ? ` · ${sideTold(side)}` : ""}{model.name && <> · <bdi>{short(model.name)}</bdi></>}</small></h3>
        {where && <a href={`https://www.neuronpedia.org/${where.split("/").map(encodeURIComponent).join("/")}/${feature}`}
          target="_blank" rel="noopener noreferrer">Neuronpedia</a>}
      </header>
      {features ? (
        <dl class="pairs">
          <div><dt>fires on</dt><dd>{rate(at("n_active") / features.n_tokens)} of tokens <small>({count(at("n_active"))} in {count(at("n_documents"))} documents)</small></dd></div>
          <div><dt>largest activation</dt><dd>{number(at("max_activation"))}</dd></div>
          {at("verdict") && <div><dt>verdict</dt><dd>{name(at("verdict"))}</dd></div>}
          {concepts.length > 0 && <div><dt>concepts</dt><dd>{concepts.map((c) => <span class="tag" key={c}>{c}</span>)}</dd></div>}
          {spoken.length > 0 && <div><dt>decoder promotes</dt><dd>{spoken.map(([t], k) => <Token key={k} text={t} />)}</dd></div>}
        </dl>
      ) : <Absent>Nothing more is told of this feature.</Absent>}
      {opening ? <p class="wait">Opening contexts …</p> : <Contexts contexts={contexts} feature={feature} letter={letter} />}
    </article>
  );
}

function spokenFor(features, feature) {
  const tokens = features?.columns.decoder_token;
  if (!tokens) return [];
  const k = tokens.n / features.n;
  return Array.from({ length: k }, (_, i) => [tokens.get(feature * k + i), features.columns.decoder_logit.get(feature * k + i)]);
}

const indexes = new WeakMap();

/** Where each feature's contexts begin, and each context's tokens. */
function indexOf(contexts) {
  if (!indexes.has(contexts)) {
    indexes.set(contexts, {
      first: starts(contexts.columns.count.numbers), begin: starts(contexts.columns.length.numbers),
    });
  }
  return indexes.get(contexts);
}

/** Top contexts, each token shaded by how much the feature fires on it. */
function Contexts({ contexts, feature, letter }) {
  if (!contexts) return <Absent>Its contexts are not in the page.</Absent>;
  const { first, begin } = indexOf(contexts);
  const { token, activation, at, document: documents } = contexts.columns;
  const found = [];
  for (let c = first[feature]; c < first[feature + 1]; c++) {
    const words = [];
    for (let t = begin[c]; t < begin[c + 1]; t++) {
      words.push({ text: token.get(t), act: activation.numbers[t], top: t - begin[c] === at.numbers[c] });
    }
    found.push({ words, document: documents.numbers[c] });
  }
  if (found.length === 0) return <Absent>It never fires in this text.</Absent>;
  return (
    <ol class={`contexts ${letter}`} aria-label="Top contexts">
      {found.map(({ words, document }, i) => (
        <li key={i}>
          <p dir="auto" tabIndex={words.reduce((n, w) => n + w.text.length, 0) > 400 ? 0 : undefined}>
            {words.map((word, k) => {
              const share = word.act === 255 ? 0 : word.act / 254;
              const told = visible(word.text);
              return word.top
                ? <strong key={k} style={{ "--on": share }} title={`${Math.round(100 * share)} % of the largest activation`}>{told}</strong>
                : share > 0.004
                  ? <span key={k} style={{ "--on": share }} title={`${Math.round(100 * share)} %`}>{told}</span>
                  : told;
            })}
          </p>
          <small class="doc">{document > 0 || contexts.told === "activations" ? `document ${document}` : ""}</small>
        </li>
      ))}
    </ol>
  );
}

export { missing };
