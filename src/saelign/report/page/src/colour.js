// Colours of numbers: fit for the colour-blind, the same in print, light and dark.

import { interpolatePuOr, interpolateViridis } from "d3-scale-chromatic";
import { rgb } from "d3-color";

/** A scale for the values that are shown beside each other. */
export function scaleOf(values, kind) {
  const there = values.filter((value) => Number.isFinite(value));
  if (kind === "p") {
    const least = Math.min(1e-4, ...there.filter((v) => v > 0));
    const span = -Math.log10(Math.max(least, 1e-12));
    return make(kind, [1, 10 ** -span], (v) =>
      interpolateViridis(Math.min(1, -Math.log10(Math.max(v, 1e-12)) / span)));
  }
  if (kind === "difference") {
    const most = Math.max(1e-6, ...there.map(Math.abs));
    return make(kind, [-most, most], (v) => interpolatePuOr(0.5 - 0.45 * (v / most)));
  }
  const low = Math.min(0, ...there);
  const high = Math.max(low + 1e-6, ...there);
  return make(kind, [low, high], (v) => interpolateViridis((v - low) / (high - low)));
}

function make(kind, domain, colour) {
  return { kind, domain, colour: (v) => (Number.isFinite(v) ? colour(v) : null) };
}

/** Whether black is easier to read on a colour than white. */
export function isLight(colour) {
  const { r, g, b } = rgb(colour);
  return 0.299 * r + 0.587 * g + 0.114 * b > 140;
}
