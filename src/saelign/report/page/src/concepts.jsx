export function ConceptsView() { return <section><h2>Concepts</h2></section>; }
