// Begins.

// For whoever looks in with the browser's tools.
let app = null;

readPage().then(
  (page) => {
    app = new App(page);
    document.body.dataset.state = "ready";
  },
  (error) => {
    byId("status").textContent = `The page could not be drawn: ${error.message}. It needs a browser of 2023 or later.`;
    document.body.dataset.state = "failed";
    throw error;
  },
);
