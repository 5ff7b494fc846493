// How it was done: settings, formulas, versions, hashes, the command, what to cite.

import { useState } from "preact/hooks";
import { rows } from "./blocks.js";
import { run } from "./data.js";
import { CsvButton } from "./figure.jsx";
import { count } from "./format.js";
import { Missing } from "./overview.jsx";
import { Pairs } from "./parts.jsx";

const TABLES = {
  scores: "scores of every cell", summary: "scores as means over runs", cells: "pairs and correlations of every cell",
  layers: "layers of every side", agreement: "agreement of grids", verdict_shares: "verdicts, counted",
  subspaces: "subspaces of every cell", subspace_scores: "scores of subspaces", subspace_features: "features of concepts",
};

function Copied({ text, label, children }) {
  const [done, set] = useState(false);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    set(true);
    setTimeout(() => set(false), 2000);
  };
  return (
    <>
      <p><button type="button" onClick={copy}>{done ? "Copied" : label}</button> <span role="status" class="note">{done ? "It is in the clipboard." : ""}</span></p>
      {children}
    </>
  );
}

/** A setting as text, lists in a line. */
const told = (value) => value === null || value === undefined ? "none"
  : typeof value === "object" ? JSON.stringify(value) : String(value);

function settings(value, prefix = "") {
  if (value && typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([key, v]) => settings(v, prefix ? `${prefix}.${key}` : key));
  }
  return [[prefix, value]];
}

export function MethodsView() {
  const { core, tables } = run;
  const sides = Object.entries(core.models);
  const hashes = sides.flatMap(([side, about]) => [
    { what: `model ${side}`, source: about.name, sha256: about.fingerprint },
    ...(about.saes && typeof about.saes === "object" ? Object.entries(about.saes).map(([layer, sae]) =>
      ({ what: `SAE ${side} layer ${layer}`, source: sae?.source, sha256: sae?.sha256 })) : []),
  ]).concat(core.text.map((text, i) => ({ what: `text of seed ${core.seeds[i]}`, source: `${count(text.n_tokens)} tokens`, sha256: text.sha256 })));
  return (
    <section aria-labelledby="methods-title" class="methods">
      <h2 id="methods-title">Methods and provenance</h2>
      {(core.missing.length > 0 || core.left_out > 0) && <Missing />}
      <h3>To repeat it</h3>
      {core.command && (
        <Copied text={core.command} label="Copy the command"><div class="code" tabIndex={0} role="region" aria-label="Command"><pre class="command">{core.command}</pre></div></Copied>
      )}
      <p class="note">The study file with every default spelled out lies in the run's folder as <code>study.yaml</code>.</p>
      <h3>What was computed</h3>
      <div class="scroll" tabIndex={0} role="region" aria-label="Formulas">
        <table class="numbers">
          <thead><tr><th scope="col">name</th><th scope="col">what it is</th><th scope="col">source</th></tr></thead>
          <tbody>{core.methods.map((m) => (
            <tr key={m.name}><th scope="row"><code>{m.name}</code><br /><small>{m.called}</small></th><td>{m.what}</td><td>{m.cited.join(", ") || "this package"}</td></tr>
          ))}</tbody>
        </table>
      </div>
      <h3>BibTeX of what was used</h3>
      <Copied text={core.bibtex} label="Copy BibTeX"><div class="code" tabIndex={0} role="region" aria-label="BibTeX"><pre>{core.bibtex}</pre></div></Copied>
      <h3>Data</h3>
      <div class="scroll" tabIndex={0} role="region" aria-label="Tables">
        <table class="numbers">
          <thead><tr><th scope="col">table</th><th scope="col">rows</th><th scope="col">download</th></tr></thead>
          <tbody>{Object.entries(TABLES).filter(([key]) => tables[key]).map(([key, what]) => (
            <tr key={key}><th scope="row">{what}</th><td>{count(tables[key].n)}</td><td><CsvButton file={key} label={`${key}.csv`} rows={() => rows(tables[key])} /></td></tr>
          ))}</tbody>
        </table>
      </div>
      <h3>Versions and machine</h3>
      <Pairs of={[...Object.entries(core.versions), ...Object.entries(core.machine),
        ["begun", core.created], ["took", core.seconds ? `${count(core.seconds)} s` : undefined]]} />
      <h3>Hashes</h3>
      <div class="scroll" tabIndex={0} role="region" aria-label="Hashes">
        <table class="numbers">
          <caption class="note">SHA-256 of weights, SAEs and tokens <CsvButton file="hashes" rows={() => hashes} /></caption>
          <thead><tr><th scope="col">what</th><th scope="col">source</th><th scope="col">hash</th></tr></thead>
          <tbody>{hashes.map((h) => (
            <tr key={h.what}><th scope="row">{h.what}</th><td><bdi>{h.source}</bdi></td><td><code title={h.sha256}>{String(h.sha256 ?? "–").slice(0, 16)}{h.sha256?.length > 16 ? "…" : ""}</code></td></tr>
          ))}</tbody>
        </table>
      </div>
      <h3>Every setting</h3>
      <div class="scroll tall" tabIndex={0} role="region" aria-label="Settings">
        <table class="numbers">
          <tbody>{settings(core.study).map(([key, value]) => (
            <tr key={key}><th scope="row"><code>{key}</code></th><td><bdi>{told(value)}</bdi></td></tr>
          ))}</tbody>
        </table>
      </div>
    </section>
  );
}
