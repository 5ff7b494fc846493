// Small parts that the views share.

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { open, ready } from "./blocks.js";

/** A labelled choice. */
export function Choice({ label, value, options, onChange, disabled }) {
  return (
    <label class="choice">
      <span>{label}</span>
      <select value={value} disabled={disabled} onChange={(e) => onChange(e.currentTarget.value)}>
        {options.map(([key, told]) => <option key={key} value={key}>{told}</option>)}
      </select>
    </label>
  );
}

/** Blocks by name: null while they open; each is null where the page has none. */
export function useBlocks(names) {
  const key = names.join("\n");
  const at = useRef(0);
  const [, again] = useState(0);
  const found = names.map((name) => ready(name));
  const waiting = names.some((name, i) => found[i] === undefined);
  useEffect(() => {
    let live = true;
    Promise.all(names.map(open)).then(() => live && again(++at.current));
    return () => { live = false; };
  }, [key]);
  const all = useRef({ key: "", done: false });
  if (all.current.key !== key) all.current = { key, done: false };
  useEffect(() => {
    const mine = all.current;
    Promise.all(names.map(open)).then(() => { mine.done = true; again(++at.current); });
  }, [key]);
  if (waiting && !all.current.done) return null;
  return found.map((block) => block ?? null);
}

/** The width of an element, followed as it changes. */
export function useWidth(ref, first = 640) {
  const [width, set] = useState(first);
  useLayoutEffect(() => {
    const element = ref.current;
    if (!element) return undefined;
    const measure = () => set(Math.floor(element.clientWidth) || first);
    measure();
    const observer = new ResizeObserver(measure);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return width;
}

/** What is said beside the pointer or the element in focus. */
export function Hover({ at, children }) {
  const ref = useRef(null);
  useLayoutEffect(() => {
    const box = ref.current;
    if (!box || !at) return;
    const { width, height } = box.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.x + 14, innerWidth - width - 8));
    const below = at.y + 18 + height < innerHeight;
    box.style.left = `${left}px`;
    box.style.top = `${below ? at.y + 18 : Math.max(8, at.y - height - 12)}px`;
  });
  if (!at) return null;
  return <div class="hover" role="tooltip" ref={ref}>{children}</div>;
}

/** Names and values in two columns. */
export function Pairs({ of }) {
  return (
    <dl class="pairs">
      {of.filter(([, value]) => value !== undefined && value !== null).map(([key, value]) => (
        <div key={key}><dt>{key}</dt><dd>{value}</dd></div>
      ))}
    </dl>
  );
}

/** A word on what is not there. */
export const Absent = ({ children }) => <p class="absent">{children}</p>;
