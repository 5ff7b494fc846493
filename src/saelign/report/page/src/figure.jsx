// A figure with its title and its downloads.

import { useRef } from "preact/hooks";

const COPIED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity",
  "fill-opacity", "font-family", "font-size", "font-weight", "text-anchor", "dominant-baseline",
  "image-rendering"];

/** Children, which hold one SVG or more, with a title and buttons; `rows` gives what is shown. */
export function Figure({ title, note, file, rows, children, wide }) {
  const here = useRef(null);
  const svgs = () => [...here.current.querySelectorAll("svg[data-figure]")];
  return (
    <figure class={wide ? "figure wide" : "figure"}>
      <figcaption>
        <h3>{title}</h3>
        {note && <p class="note">{note}</p>}
      </figcaption>
      <div class="drawn" ref={here}>{children}</div>
      <div class="downloads" role="group" aria-label={`Download: ${title}`}>
        {rows && <button type="button" class="quiet" onClick={() => saveCsv(rows(), file)}>CSV</button>}
        <button type="button" class="quiet" onClick={() => saveSvg(svgs(), file)}>SVG</button>
        <button type="button" class="quiet" onClick={() => savePng(svgs(), file)}>PNG</button>
      </div>
    </figure>
  );
}

/** A button that saves rows as CSV. */
export function CsvButton({ rows, file, label = "CSV" }) {
  return (
    <button type="button" class="quiet" onClick={() => saveCsv(rows(), file)}>{label}</button>
  );
}

function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const anchor = document.createElement("a");
  anchor.href = address;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

const told = (value) => {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  const text = typeof value === "number" ? String(+value.toPrecision(7)) : String(value);
  // A spreadsheet would compute what begins like a formula.
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
};

function saveCsv(rows, file) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const lines = [names, ...rows.map((row) => names.map((name) => row[name]))];
  const text = lines.map((line) => line.map(told).join(",")).join("\n");
  save(new Blob([`${text}\n`], { type: "text/csv" }), `${file}.csv`);
}

/** One SVG of all that stand in a figure, side by side, looking as they do on the page. */
function drawn(svgs) {
  const gap = 24;
  const boxes = svgs.map((svg) => svg.getBoundingClientRect());
  const width = boxes.reduce((sum, box) => sum + box.width + gap, -gap);
  const height = Math.max(...boxes.map((box) => box.height));
  const ground = getComputedStyle(document.body).backgroundColor;
  const parts = svgs.map((svg, i) => {
    const copy = svg.cloneNode(true);
    const pairs = [[svg, copy]];
    const from = svg.querySelectorAll("*");
    copy.querySelectorAll("*").forEach((element, j) => pairs.push([from[j], element]));
    for (const [shown, element] of pairs) {
      const style = getComputedStyle(shown);
      for (const property of COPIED) {
        const value = style.getPropertyValue(property);
        if (value) element.setAttribute(property, value);
      }
      for (const gone of ["class", "style", "tabindex", "role", "aria-label"]) {
        element.removeAttribute(gone);
      }
    }
    const x = boxes.slice(0, i).reduce((sum, box) => sum + box.width + gap, 0);
    copy.setAttribute("x", x);
    copy.setAttribute("width", boxes[i].width);
    copy.setAttribute("height", boxes[i].height);
    return new XMLSerializer().serializeToString(copy);
  });
  const text = `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" ` +
    `viewBox="0 0 ${width} ${height}"><rect width="100%" height="100%" fill="${ground}"/>` +
    `${parts.join("")}</svg>`;
  return { text, width, height };
}

function saveSvg(svgs, file) {
  save(new Blob([drawn(svgs).text], { type: "image/svg+xml" }), `${file}.svg`);
}

async function savePng(svgs, file) {
  const { text, width, height } = drawn(svgs);
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(2 * width);
  canvas.height = Math.round(2 * height);
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => save(blob, `${file}.png`), "image/png");
}
