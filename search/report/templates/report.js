(function () {
  "use strict";
  const stored = document.getElementById("data");
  const data = stored ? JSON.parse(stored.textContent) : null;
  const all = (selector, inside) => Array.from((inside || document).querySelectorAll(selector));

  // Text with code in backticks, as elements: nothing is ever read as markup.
  function write(element, text) {
    element.replaceChildren(...text.split("`").map((part, number) => {
      if (number % 2 === 0) return document.createTextNode(part);
      const code = document.createElement("code");
      code.textContent = part;
      return code;
    }));
  }

  function copied(button) {
    const text = button.parentElement.querySelector("pre");
    const said = button.parentElement.querySelector(".copied");
    const failed = () => {
      getSelection().selectAllChildren(text);
      said.textContent = "Could not copy: the text is selected, press Ctrl+C";
    };
    if (!navigator.clipboard) return failed();
    navigator.clipboard.writeText(text.textContent).then(() => { said.textContent = "Copied"; }, failed);
  }

  function makeTabs(box) {
    const panels = all(".engine", box);
    const list = document.createElement("div");
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", "Engines");
    const tabs = panels.map((panel) => {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.id = panel.id + "-tab";
      tab.textContent = panel.querySelector("h4").textContent;
      tab.setAttribute("role", "tab");
      tab.setAttribute("aria-controls", panel.id);
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      panel.querySelector("h4").hidden = true;
      return tab;
    });
    const show = (chosen) => tabs.forEach((tab, number) => {
      tab.setAttribute("aria-selected", String(number === chosen));
      tab.tabIndex = number === chosen ? 0 : -1;
      panels[number].hidden = number !== chosen;
    });
    tabs.forEach((tab, number) => {
      tab.addEventListener("click", () => show(number));
      tab.addEventListener("keydown", (event) => {
        const last = tabs.length - 1;
        const next = { ArrowRight: number === last ? 0 : number + 1, ArrowLeft: number === 0 ? last : number - 1, Home: 0, End: last }[event.key];
        if (next === undefined) return;
        event.preventDefault();
        show(next);
        tabs[next].focus();
      });
    });
    list.append(...tabs);
    box.prepend(list);
    show(0);
  }

  function readout(figure) {
    const words = figure.querySelector(".readout");
    const tell = (event) => {
      const marks = event.target.parentElement;
      if (!marks || !marks.matches(".marks")) return;
      // The same mark of the wide picture has the words, also for the one that is drawn for phones.
      const all = (svg) => Array.from(svg.querySelectorAll(".marks > *"));
      const place = all(event.target.ownerSVGElement).indexOf(event.target);
      words.hidden = false;
      words.textContent = all(figure.querySelector("svg.wide"))[place].querySelector("title").textContent;
    };
    figure.addEventListener("pointerover", tell);
    figure.addEventListener("click", tell);
  }

  // Where every layer is a site, the pattern over layers is that over sites.
  const layersOf = (budget) => budget.layers || budget.sites;

  // The same rule as in sections/settings.py.
  function assembled(engine, budget) {
    const pattern = engine.bySite ? budget.sites : layersOf(budget);
    const other = engine.others[budget.kept];
    if (other !== undefined) return other;
    return engine.pieces.map((piece) => {
      if (typeof piece === "string") return piece;
      if (piece[0] === "letters") return pattern;
      const quote = piece[1];
      return Array.from(pattern, (letter) => quote + (letter === "F" ? "full" : "shared") + quote).join(piece[2]);
    }).join("");
  }

  function figures(lines) {
    return lines.map(([name, figure, interval, caption]) => {
      const box = document.createElement("div");
      const term = document.createElement("dt");
      const value = document.createElement("dd");
      const strong = document.createElement("b");
      box.className = name;
      term.textContent = data.words[caption];
      strong.textContent = figure;
      value.append(strong);
      if (interval) {
        const small = document.createElement("small");
        small.textContent = interval;
        value.append(" ", small);
      }
      box.append(term, value);
      return box;
    });
  }

  function layers(budget, own) {
    let source = 0;
    const strip = document.querySelector(".strip");
    strip.classList.toggle("other", !own);
    all("li[data-site]", strip).forEach((cell) => {
      const role = budget.sites[cell.dataset.site];
      const layer = cell.dataset.layer;
      if (role === "F") source = layer;
      cell.classList.toggle("F", role === "F");
      cell.classList.toggle("S", role === "S");
      cell.querySelector("b").textContent = role;
      const heard = cell.querySelector(".heard");
      cell.dataset.words = cell.dataset.words || heard.textContent;
      const words = role === "F" ? "layer " + layer + " runs its indexer" : "layer " + layer + " reuses the selection of layer " + source;
      cell.title = heard.textContent = own ? cell.dataset.words : words;
    });
  }

  function marker(budget, own) {
    all("svg[data-sites]").forEach((svg) => {
      const group = svg.querySelector(".marker");
      if (!group) return;
      const x = Number(group.dataset.start) + (svg.dataset.sites - budget.kept) * svg.dataset.step;
      const half = svg.viewBox.baseVal.width / 2;
      const label = group.querySelector("text");
      group.querySelector("path").setAttribute("transform", "translate(" + x + " 0)");
      label.setAttribute("x", x);
      label.setAttribute("text-anchor", x > half ? "end" : "start");
      label.textContent = (own ? "this plan: " : "") + budget.kept + " of " + svg.dataset.sites + " kept";
    });
  }

  function slide(form) {
    const range = form.querySelector("input");
    const back = document.getElementById("back");
    const show = () => {
      const budget = data.budgets[range.value];
      const own = Number(range.value) === data.picked;
      const words = budget.kept + " of " + budget.sites.length;
      document.getElementById("kept").textContent = words;
      range.setAttribute("aria-valuetext", words + " indexers kept");
      document.getElementById("sentence").textContent = budget.sentence;
      write(document.getElementById("gaps"), data.words[budget.gaps]);
      document.getElementById("memory").textContent = budget.memory.map((part) => (typeof part === "string" ? part : data.words[part])).join("");
      document.getElementById("figures").replaceChildren(...figures(budget.figures));
      document.getElementById("letters").textContent = layersOf(budget);
      all(".engine").forEach((panel) => {
        const engine = data.engines[panel.dataset.engine];
        if (engine) panel.querySelector("code").textContent = assembled(engine, budget);
        panel.querySelector(".copied").textContent = "";
      });
      layers(budget, own);
      marker(budget, own);
      back.disabled = own;
    };
    range.value = data.picked;
    range.addEventListener("input", show);
    back.addEventListener("click", () => { range.value = data.picked; show(); range.focus(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    show();
  }

  all(".engines").forEach(makeTabs);
  all(".copy").forEach((button) => { button.hidden = false; button.addEventListener("click", () => copied(button)); });
  all("figure").forEach(readout);
  all(".slider").forEach(slide);
})();
