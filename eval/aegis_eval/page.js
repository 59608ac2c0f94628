// Tables sort by the column whose heading is clicked: numbers by value, dashes last, a second click turns the order.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.tabIndex = 0;
    heading.setAttribute("role", "button");
    const sort = () => {
      const before = heading.getAttribute("aria-sort");
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      const order = { descending: "ascending", ascending: null }[before];
      const wanted = before ? order : "descending";
      if (!wanted) return original.forEach((row) => body.append(row));
      heading.setAttribute("aria-sort", wanted);
      const turn = wanted === "descending" ? -1 : 1;
      const key = (row) => parseFloat(row.cells[column].textContent.replace("−", "-"));
      const text = (row) => row.cells[column].textContent;
      const compare = (one, other) => {
        const [a, b] = [key(one), key(other)];
        if (Number.isNaN(a) && Number.isNaN(b)) return turn * text(one).localeCompare(text(other));
        if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
        return turn * (a - b);
      };
      [...original].sort(compare).forEach((row) => body.append(row));
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
document.documentElement.dataset.ready = "yes";
