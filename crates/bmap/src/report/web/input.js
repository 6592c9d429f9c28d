// Mouse, fingers and keys on the map.

// A pointer that moves less between down and up has clicked.
const CLICK = 5;

function prepareInput(app) {
  const { overlay, view } = { overlay: app.canvas.overlay, view: app.canvas.view };
  const at = (event) => {
    const box = overlay.getBoundingClientRect();
    return { x: (event.clientX - box.left) * view.ratio, y: (event.clientY - box.top) * view.ratio };
  };
  const zoom = (factor, x, y) => {
    view.zoomBy(factor, x, y);
    app.redraw("picture");
  };
  preparePointers(app, overlay, at, zoom);

  overlay.addEventListener("wheel", (event) => {
    event.preventDefault();
    const { x, y } = at(event);
    zoom(Math.exp(-Math.max(-200, Math.min(200, event.deltaY)) / 300), x, y);
  }, { passive: false });
  overlay.addEventListener("dblclick", (event) => zoom(3, at(event).x, at(event).y));
  byId("zoom-in").addEventListener("click", () => zoom(2));
  byId("zoom-out").addEventListener("click", () => zoom(0.5));
  byId("zoom-reset").addEventListener("click", () => zoom(1e-12));

  overlay.addEventListener("keydown", (event) => pressOnMap(app, event, zoom));
  overlay.addEventListener("focus", () => app.redraw("overlay"));
  overlay.addEventListener("blur", () => app.redraw("overlay"));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      app.choose(null);
    } else if (event.key === "/" && !["INPUT", "SELECT"].includes(document.activeElement.tagName)) {
      byId("query").focus();
      event.preventDefault();
    }
  });
}

// One pointer moves the map, two zoom it as well.
function preparePointers(app, overlay, at, zoom) {
  const { view } = app.canvas;
  const pointers = new Map();
  let moved = 0;
  const middle = () => {
    const all = [...pointers.values()];
    const [x, y] = ["x", "y"].map((axis) => all.reduce((sum, point) => sum + point[axis], 0) / all.length);
    const spread = all.length > 1 ? Math.hypot(all[0].x - all[1].x, all[0].y - all[1].y) : 0;
    return { x, y, spread };
  };
  overlay.addEventListener("pointerdown", (event) => {
    overlay.setPointerCapture(event.pointerId);
    app.isByKeyboard = false;
    if (pointers.size === 0) moved = 0;
    pointers.set(event.pointerId, at(event));
  });
  overlay.addEventListener("pointermove", (event) => {
    if (!pointers.has(event.pointerId)) return app.hoverAt(at(event).x, at(event).y);
    const before = middle();
    pointers.set(event.pointerId, at(event));
    const after = middle();
    moved += Math.hypot(after.x - before.x, after.y - before.y) + Math.abs(after.spread - before.spread);
    if (moved < CLICK * view.ratio) return;
    view.panBy(after.x - before.x, after.y - before.y);
    if (before.spread > 0 && after.spread > 0) view.zoomBy(after.spread / before.spread, after.x, after.y);
    app.hoverAt(null);
    app.redraw("picture");
  });
  const end = (event) => {
    const isClick = pointers.size === 1 && moved < CLICK * view.ratio && event.type === "pointerup";
    pointers.delete(event.pointerId);
    if (isClick) app.chooseAt(at(event).x, at(event).y);
  };
  overlay.addEventListener("pointerup", end);
  overlay.addEventListener("pointercancel", end);
  overlay.addEventListener("pointerleave", () => app.hoverAt(null));
}

function pressOnMap(app, event, zoom) {
  const { view } = app.canvas;
  const step = Math.min(view.width, view.height) / 8;
  const moves = { ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
  const actions = {
    "+": () => zoom(1.5),
    "=": () => zoom(1.5),
    "-": () => zoom(1 / 1.5),
    "0": () => zoom(1e-12),
    Enter: () => app.chooseAt(view.width / 2, view.height / 2),
    n: () => app.stepPiece(1),
    p: () => app.stepPiece(-1),
  };
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key in moves) view.panBy(...moves[event.key]);
  else if (event.key in actions) actions[event.key]();
  else return;
  event.preventDefault();
  app.isByKeyboard = true;
  app.redraw("picture");
  if (event.key === "Enter") return;
  const offset = view.offsetAt(app.disk, view.width / 2, view.height / 2);
  if (event.key in moves && offset !== null) byId("status").textContent = placeText(app.model, app.disk, offset).replaceAll("\n", " · ");
}
