export function MapView() { return <section><h2>Map</h2></section>; }
