// Numbers and names as they are told.

import { format } from "d3-format";

const two = format(".2f");
const three = format(".3f");
const whole = format(",d");
const general = format(".2~g");

const minus = (text) => text.replace("-", "\u2212");
export const missing = "\u2013";
const bare = (value) => value === null || value === undefined || Number.isNaN(value);

/** A count with thousands parted. */
export const count = (value) => (bare(value) ? missing : minus(whole(Math.round(value))));
/** A score or correlation: .312 */
export const score = (value, digits = 3) => {
  if (bare(value)) return missing;
  const text = (digits === 2 ? two : three)(Object.is(value, -0) ? 0 : value);
  return text.replace(/^([-\u2212]?)0\./, (_, sign) => `${sign ? "\u2212" : ""}.`).replace(/^\u2212(\.0+)$/, "$1");
};
/** A probability: .003, 2e-5 */
export const probability = (value) => {
  if (bare(value)) return missing;
  if (value >= 0.9995) return "1";
  if (value >= 0.00095) return value.toPrecision(2).replace(/^0\./, ".").replace(/^1\.0$/, "1");
  const [front, power] = value.toExponential(0).split("e");
  return `${front}e\u2212${Math.abs(Number(power))}`;
};
/** A share in percent. */
export const percent = (value, digits = 0) =>
  bare(value) ? missing : `${(100 * value).toFixed(digits)}\u202f%`;
/** A share that may be small: 3.1 %, 0.02 % */
export const rate = (value) =>
  bare(value) ? missing : `${general(100 * value)}\u202f%`;
/** Any number with two digits that count. */
export const number = (value) => (bare(value) ? missing : minus(general(value)));
export const z = (value) => (bare(value) ? missing : minus(format(".1f")(value)));

const TOLD = {
  trained: "trained", untrained: "untrained twins", document_shift: "document shift",
  seed_a: "A with itself", seed_b: "B with itself",
  one_to_one: "one-to-one", many_to_one: "many-to-one", one_to_many: "one-to-many",
  optimal: "optimal one-to-one", rate_matched: "rate-matched", same_size: "same size",
  shuffle: "shuffle", one_sided: "one-sided", non_concept: "top tokens are punctuation",
  no_shared_token: "no shared top token", low_correlation: "low correlation",
  within_token: "within-token", dead: "dead", rare: "rare",
};
/** A name of the run in words. */
export const name = (text) => TOLD[text] ?? String(text);

const SITES = { resid_post: "residual stream after a block", resid_pre: "residual stream before a block",
  mlp_out: "MLP output", attn_out: "attention output", attn_z: "attention heads' outputs" };
/** Where in a block a model is read, in words. */
export const site = (about) => about && (SITES[about.name] ?? String(about.name));

/** The last part of a model's path or hub name. */
export const short = (model) => String(model ?? "").replace(/\/+$/, "").split("/").pop();

/** Blanks that a token is made of, made visible. */
export const visible = (token) =>
  token.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5").replaceAll("\r", "\u240d");
