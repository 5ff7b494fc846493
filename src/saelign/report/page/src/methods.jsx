export function MethodsView() { return <section><h2>Methods</h2></section>; }
