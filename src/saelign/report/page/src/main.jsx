// The page: opens what it needs at once, then shows the view that the address asks for.

import { render } from "preact";
import { useEffect, useState } from "preact/hooks";
import { has, open } from "./blocks.js";
import { CellView } from "./cell.jsx";
import { ConceptsView } from "./concepts.jsx";
import { run } from "./data.js";
import { FeaturesView } from "./features.jsx";
import { GridView } from "./grid.jsx";
import { MapView } from "./map.jsx";
import { MethodsView } from "./methods.jsx";
import { Overview } from "./overview.jsx";
import { link, useAddress } from "./state.js";

const VIEWS = [
  ["overview", "Overview", Overview],
  ["grid", "Layer grid", GridView],
  ["cell", "Cell", CellView],
  ["features", "Features", FeaturesView],
  ["map", "Map", MapView],
  ["concepts", "Concepts", ConceptsView],
  ["methods", "Methods", MethodsView],
];

const TABLES = ["scores", "summary", "cells", "layers", "agreement", "verdict_shares", "subspaces",
  "subspace_scores", "subspace_features"];

const THEMES = ["auto", "light", "dark"];

function stored() {
  try {
    return localStorage.getItem("saelign-theme") ?? "auto";
  } catch {
    return "auto"; // a browser may keep nothing for pages from a file
  }
}

function ThemeSwitch() {
  const [theme, set] = useState(stored());
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    try {
      localStorage.setItem("saelign-theme", theme);
    } catch { /* see above */ }
  }, [theme]);
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  return (
    <button type="button" class="quiet theme" onClick={() => set(next)}
      aria-label={`Colours: ${theme}; change to ${next}`}>
      {{ auto: "◐ Auto", light: "☀ Light", dark: "☾ Dark" }[theme]}
    </button>
  );
}

function Page() {
  const address = useAddress();
  const views = VIEWS.filter(([key]) => key !== "concepts" || has("subspaces") || has("subspace_features"));
  const [key, told, View] = views.find(([k]) => k === address.view) ?? views[0];
  useEffect(() => {
    document.title = `${told} · ${run.core.name} · saelign`;
    const here = document.querySelector(".top nav [aria-current]");  // tabs that a phone has no room for
    if (here) here.parentElement.scrollLeft = here.offsetLeft - here.parentElement.clientWidth / 2;
  }, [told]);
  return (
    <>
      <a class="skip" href={link({})} onClick={(e) => { e.preventDefault(); document.querySelector("main").focus(); }}>To the content</a>
      <header class="top">
        <h1><bdi>{run.core.name}</bdi></h1>
        <nav aria-label="Views">
          {views.map(([k, label]) => (
            <a key={k} href={link({ view: k })} aria-current={k === key ? "page" : undefined}>{label}</a>
          ))}
        </nav>
        <ThemeSwitch />
      </header>
      <main tabIndex={-1}>
        <View address={address} key={key} />
      </main>
      <footer>
        Made by saelign {run.core.versions.saelign}{run.core.created ? `, ${run.core.created.slice(0, 10)}` : ""}.
        Everything on this page lies in this one file.
      </footer>
    </>
  );
}

async function start() {
  const app = document.getElementById("app");
  try {
    run.core = await open("core");
    await Promise.all(TABLES.map(async (name) => {
      const block = await open(name);
      if (block) run.tables[name] = block;
    }));
    app.textContent = "";
    render(<Page />, app);
    performance.mark("saelign-shown");
  } catch (error) {
    app.textContent = `This report cannot be opened: ${error.message}. `
      + "It may have been cut short on its way; write it again with `saelign report RUN`.";
    throw error;
  }
}

start();
