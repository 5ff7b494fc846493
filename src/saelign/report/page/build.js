// Bundles the page's script and style into built/, with the licences of what is bundled.
import { build } from "esbuild";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";

const bundled = ["preact", "d3-array", "d3-color", "d3-format", "d3-interpolate", "d3-scale",
  "d3-scale-chromatic", "d3-time", "d3-time-format", "internmap"];

mkdirSync("built", { recursive: true });
await build({
  entryPoints: { report: "src/main.jsx" },
  outdir: "built",
  bundle: true,
  minify: true,
  format: "iife",
  target: ["es2022"],
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "none",
  charset: "ascii",
});
await build({ entryPoints: { report: "src/style.css" }, outdir: "built", bundle: true, minify: true,
  charset: "ascii" });
const licences = bundled.map((name) => {
  const about = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
  const text = readFileSync(`node_modules/${name}/LICENSE`, "utf8").trim();
  return `${name} ${about.version} (${about.license})\n\n${text}\n`;
});
writeFileSync("built/LICENSES.txt",
  `report.js holds these libraries:\n\n${licences.join(`\n${"-".repeat(80)}\n\n`)}`);
// A </script> within the script would end it.
const script = readFileSync("built/report.js", "utf8").replaceAll(/<\/(script)/gi, "<\\/$1")
  .replaceAll("<!--", "<\\!--");
writeFileSync("built/report.js", script);
