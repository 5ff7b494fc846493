// What is shown stands in the address after the #, so that a link opens the same view again.

import { useEffect, useState } from "preact/hooks";

const listeners = new Set();

const read = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

let state = read();

const viewOf = (s) => s.view ?? (s.pair ? "features" : s.cell ? "cell" : "overview");

function told(next) {
  const hash = new URLSearchParams();
  for (const [key, value] of Object.entries(next)) {
    if (value !== undefined && value !== null && value !== "") hash.set(key, value);
  }
  return `#${hash.toString().replaceAll("%3A", ":").replaceAll("%2C", ",")}`;
}

/** The address of a state that differs from the present one in `change`. */
export const link = (change) => told({ ...state, ...change });

/** Goes to a state; `quietly` leaves no step in the browser's history. */
export function go(change, { quietly = false } = {}) {
  const hash = link(change);
  if (hash === location.hash) return;
  history[quietly ? "replaceState" : "pushState"](null, "", hash);
  changed();
}

function changed() {
  state = read();
  for (const listener of listeners) listener(state);
}

window.addEventListener("popstate", changed);
window.addEventListener("hashchange", changed);

/** The present state, and again whenever it changes. */
export function useAddress() {
  const [present, set] = useState(state);
  useEffect(() => {
    listeners.add(set);
    set(state);
    return () => listeners.delete(set);
  }, []);
  return { ...present, view: viewOf(present) };
}
