// props.value is JSON from Python, a little more of the screen each time: {run, state, total, found, refused, from, rows, badFrom, bad, figure, provenance}.
// A message that got lost on the way shows as a gap, and what is missing is asked for. Rows are only ever added.
const find = selector => element.querySelector(selector);
const plot = find('.plot'), body = find('.table tbody'), head = find('.table thead tr'), chosenBox = find('.chosen');
const signs = { known: 'circle', close: 'diamond', far: 'circle-open' };
const words = { known: 'taught', close: 'close', far: 'far' };
let run = null, rows = [], bad = [], lines = new Map(), figure = null, provenance = null, colours = {}, chosen = null, asked = 0;
let total = null, began = null, arriving = Promise.resolve(), drawing = null, dirty = false, drawn = 0, pace = 1000, seen = false;
let buttons = null;
let order = { key: 'strength', down: true };

const who = row => row.name || row.smiles;
const columns = [
  { key: 'rank', name: 'Rank', wide: 7, number: true },
  { key: 'who', name: 'Molecule', wide: 15, value: who },
  { key: 'dose_um', name: 'µM', wide: 7, number: true, title: 'Dose, micromolar' },
  { key: 'strength', name: 'Effect', wide: 13, title: 'Strength of the effect; 1 is the spread of cells within a mechanism' },
  { key: 'mechanism', name: 'Resembles', wide: 23, title: 'The real mechanism whose effect is most alike, and the cosine between the two' },
  { key: 'agreement', name: 'Agree', wide: 8, number: true, title: 'Share of the cells that agree on the mechanism' },
  { key: 'verdict', name: 'Confidence', wide: 12, title: 'Is it near what the model was taught, and how often held-out compounds of this kind came out right', value: row => ['known', 'close', 'far'].indexOf(row.verdict) },
  { key: 'tanimoto', name: 'Nearest', wide: 15, title: 'The compound with the most similar structure, and the Tanimoto similarity' },
];

function make(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

// The table

function header() {
  head.replaceChildren(...columns.map(column => {
    const th = make('th'), button = make('button', column.number ? 'number' : '', column.name);
    th.scope = 'col';
    th.style.width = `${column.wide}%`;
    th.dataset.key = column.key;
    button.type = 'button';
    if (column.title) button.title = column.title;
    button.addEventListener('click', () => {
      const down = ['strength', 'agreement', 'tanimoto'].includes(column.key);
      order = { key: column.key, down: order.key === column.key ? !order.down : down };
      arrange();
    });
    th.append(button);
    return th;
  }));
}

function line(row) {
  const tr = make('tr'), cell = (className, ...inside) => { const td = make('td', className); td.append(...inside); tr.append(td); return td; };
  tr.dataset.number = row.number;
  tr.tabIndex = -1;
  tr.setAttribute('aria-selected', 'false');
  cell('number rank', '');
  cell('who', who(row)).title = row.name ? `${row.name}: ${row.smiles}` : row.smiles;
  cell('number', String(+row.dose_um.toPrecision(3)));
  const strength = make('div', 'strength');
  strength.append(make('span', '', row.strength.toFixed(1)), make('i'));
  cell('', strength);
  const dot = make('span', 'dot');
  dot.style.background = colours[row.mechanism] || '#888';
  cell('', make('small', '', row.cosine.toFixed(2)), dot, row.mechanism).title = `${row.mechanism}, cosine ${row.cosine.toFixed(2)}`;
  cell('number', `${Math.round(100 * row.agreement)} %`);
  const trust = cell('', words[row.verdict]);
  if (row.confidence) trust.append(make('small', '', `, ${row.confidence}`));
  cell('near', make('small', '', row.tanimoto.toFixed(2)), ` ${row.nearest}`).title = row.nearest;
  return tr;
}

function arrange() {
  const ranked = [...rows].sort((a, b) => b.strength - a.strength || a.number - b.number), most = ranked.length ? ranked[0].strength : 1;
  ranked.forEach((row, i) => {
    const tr = lines.get(row.number);
    if (row.rank !== i + 1) tr.firstChild.textContent = row.rank = i + 1;
    if (row.most !== most) tr.querySelector('i').style.width = `${100 * row.strength / Math.max(row.most = most, 1e-9)}%`;
  });
  const value = columns.find(c => c.key === order.key).value || (row => row[order.key]), sign = order.down ? -1 : 1;
  const compare = (a, b) => { const x = value(a), y = value(b); return sign * (typeof x === 'string' ? x.localeCompare(y) : x - y) || a.rank - b.rank; };
  const focused = body.contains(document.activeElement) && document.activeElement;
  let at = body.firstChild;
  for (const row of ranked.sort(compare)) {
    const tr = lines.get(row.number);
    if (tr === at) at = at.nextSibling; else body.insertBefore(tr, at);
  }
  if (focused && focused !== document.activeElement) focused.focus({ preventScroll: true });
  head.querySelectorAll('th').forEach(th => {
    if (th.dataset.key === order.key) th.setAttribute('aria-sort', order.down ? 'descending' : 'ascending');
    else th.removeAttribute('aria-sort');
  });
  enter(focused || lines.get(chosen) || body.firstChild);
}

// One row at a time is reached by Tab; arrows go on from there.
function enter(tr) {
  body.querySelectorAll('tr[tabindex="0"]').forEach(other => { other.tabIndex = -1; });
  if (tr) tr.tabIndex = 0;
}

// The map: plotly comes with the first screen, from this server, and is told of new points at most once a second

function place(row) {
  const trace = figure.data.find(t => t.name === row.mechanism);
  if (!trace) return;
  trace.x.push(row.x);
  trace.y.push(row.y);
  trace.marker.symbol.push(signs[row.verdict]);
  trace.customdata.push([row.number, who(row).slice(0, 60), row.dose_um, row.strength]);
}

function ring() {
  const row = rows.find(r => r.number === chosen);
  return { x: row ? [row.x] : [], y: row ? [row.y] : [], mode: 'markers', hoverinfo: 'skip', showlegend: false, name: 'chosen',
    marker: { symbol: 'circle-open', size: 19, color: getComputedStyle(element).getPropertyValue('--color-accent') || '#6366f1', line: { width: 3 } } };
}

async function draw() {
  if (!figure || !seen) return;
  let Plotly;
  try { Plotly = await window.mfmPlotly(plotly); } catch { plot.classList.add('failed'); plot.textContent = 'The map could not be loaded; the table holds everything.'; return; }
  dirty = false;
  const first = !plot.data;
  buttons ??= [window.mfmSaveButton?.(Plotly, 'phenotype-map', () => provenance)].filter(Boolean);
  await Plotly.react(plot, [...figure.data, ring()], { ...figure.layout, uirevision: run }, { responsive: true, displaylogo: false, modeBarButtons: [['zoom2d', 'pan2d', 'resetScale2d', ...buttons]] });
  if (first) plot.on('plotly_click', event => { const number = event.points.map(p => p.customdata?.[0]).find(Boolean); if (number) choose(number); });
}

function drawSoon(wait) {
  dirty = true;
  clearTimeout(drawing);
  drawing = setTimeout(async () => {
    const start = performance.now();
    arrange();
    await draw();
    drawn = performance.now();
    pace = Math.max(1000, 4 * (drawn - start));      // a long table leaves the page three quarters of the time
  }, Math.max(0, wait - (performance.now() - drawn)));
}

// One molecule and its cells

function figures(row) {
  const list = make('dl'), say = (term, what) => list.append(make('dt', '', term), make('dd', '', what));
  say('Effect', `${row.strength.toFixed(1)}, rank ${row.rank} of ${rows.length}`);
  say('Resembles', `${row.mechanism} (cosine ${row.cosine.toFixed(2)}); ${Math.round(100 * row.agreement)} % of its cells agree`);
  say('Confidence', `${{ known: 'the model was taught this compound', close: 'close to a compound it was taught', far: 'far from all it was taught; take it as a guess' }[row.verdict]}`
    + (row.confidence ? `; of held-out compounds of this kind ${row.confidence} came out right` : ''));
  say('Nearest taught', `${row.nearest} (Tanimoto ${row.tanimoto.toFixed(2)})`);
  say('In the list', row.place);
  return list;
}

async function choose(number) {
  const row = rows.find(r => r.number === number), mine = ++asked, of = run;
  if (!row) return;
  if (lines.has(chosen)) lines.get(chosen).setAttribute('aria-selected', 'false');
  chosen = number;
  lines.get(number).setAttribute('aria-selected', 'true');
  enter(lines.get(number));
  keepInView(lines.get(number));
  draw();
  let told;
  try { told = JSON.parse(await server.cells_asked({ run, number })); } catch { told = { trouble: 'The server did not answer; try again.' }; }
  if (mine !== asked || of !== run) return;
  const title = make('h3', '', `${who(row)} `), small = make('small', '', `${+row.dose_um.toPrecision(3)} µM`);
  title.append(small);
  chosenBox.replaceChildren(title);
  if (row.name) chosenBox.append(Object.assign(make('code', '', row.smiles), { title: row.smiles }));
  if (told.trouble) return chosenBox.append(make('p', 'empty', told.trouble));
  const picture = (label, source) => {
    const image = make('img');
    image.src = source;
    image.alt = `${label}: predicted cells`;
    chosenBox.append(make('p', 'label', label), image);
  };
  picture('Treated', told.treated);
  picture(`${told.control_name}, from the same noise`, told.control);
  const structure = make('div', 'structure');
  structure.innerHTML = told.structure;
  chosenBox.append(structure, figures(row));
  if (plot.data) window.Plotly.Plots.resize(plot);
}

function keepInView(tr) {
  const box = find('.table'), top = tr.offsetTop - head.offsetHeight;
  if (top < box.scrollTop) box.scrollTop = top;
  if (tr.offsetTop + tr.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = tr.offsetTop + tr.offsetHeight - box.clientHeight;
}

body.addEventListener('click', event => { const tr = event.target.closest('tr'); if (tr) choose(+tr.dataset.number); });
body.addEventListener('keydown', event => {
  const tr = event.target.closest('tr');
  if (!tr) return;
  if (event.key === 'Enter' || event.key === ' ') { event.preventDefault(); return void choose(+tr.dataset.number); }
  const next = { ArrowDown: tr.nextSibling, ArrowUp: tr.previousSibling, Home: body.firstChild, End: body.lastChild }[event.key];
  if (!next) return;
  event.preventDefault();
  enter(next);
  next.focus({ preventScroll: true });
  keepInView(next);
});

// What comes from Python

function begin(news) {
  run = news.run;
  total = null;
  rows = []; bad = []; chosen = null; lines = new Map();
  body.replaceChildren();
  find('.refused tbody').replaceChildren();
  find('.refused').hidden = true;
  chosenBox.replaceChildren(make('p', 'empty', 'Click a point or a row to see its cells.'));
  find('.hint').hidden = true;
  find('.stage').hidden = false;
  if (!seen) element.scrollIntoView({ behavior: 'smooth' });      // on a narrow page it begins below the fields
}

function add(fresh) {
  for (const row of fresh) {
    rows.push(row);
    lines.set(row.number, line(row));
    place(row);
  }
}

function refuse(fresh) {
  for (const row of fresh) {
    const tr = make('tr');
    bad.push(row);
    tr.append(make('td', '', row.place), make('td', '', row.said), make('td', '', row.problem));
    find('.refused tbody').append(tr);
  }
  find('.refused').hidden = !bad.length;
  find('.refused summary').textContent = `${bad.length} ${bad.length === 1 ? 'row was' : 'rows were'} refused; the others went on`;
}

function left(news) {
  const done = news.found + news.refused;
  if (!began || done <= began.done) { began ??= { done, at: performance.now() }; return ''; }
  const seconds = (performance.now() - began.at) / 1000 / (done - began.done) * (news.total - done);
  return `, about ${seconds < 90 ? `${Math.max(1, Math.round(seconds))} s` : `${Math.round(seconds / 60)} min`} left`;
}

function say(news) {
  const bar = find('progress'), said = find('output'), done = news.found + news.refused;
  if (news.state === 'stopped') news.total = total;
  else if (news.total === null) { bar.removeAttribute('value'); said.textContent = 'Reading the list'; began = null; return; }
  total = news.total;
  bar.max = Math.max(1, total || done);
  bar.value = done;
  const refused = news.refused ? `, ${news.refused} refused` : '';
  const what = { running: `${done} of ${news.total}${refused}${left(news)}`, stopped: `Stopped after ${done}${total ? ` of ${total}` : ''}${refused}`, done: `All ${news.total} done${refused}` };
  said.textContent = what[news.state];
}

async function take(news) {
  if (news.run !== run) begin(news);
  if (news.figure) {
    figure = news.figure;
    provenance = news.provenance;
    colours = {};
    for (const trace of figure.data) if (trace.customdata) colours[trace.name] = trace.marker.color;
    for (const trace of figure.data) if (trace.customdata) Object.assign(trace, { x: [], y: [], customdata: [] }), trace.marker.symbol = [];
    rows.forEach(place);
  }
  if (news.from > rows.length || news.badFrom > bad.length) {
    const missing = JSON.parse(await server.told_asked({ run, found: rows.length, refused: bad.length }));
    if (news.run !== run) return;
    add(missing.rows);
    refuse(missing.bad);
  }
  add(news.rows.filter(row => row.number > rows.length));
  refuse(news.bad.slice(Math.max(0, bad.length - news.badFrom)));
  say(news);
  drawSoon(news.state === 'running' ? pace : 0);
}

watch('value', () => {
  if (!props.value) return;
  const news = JSON.parse(props.value);
  arriving = arriving.then(() => take(news)).catch(error => console.error(error));
});

new IntersectionObserver(entries => {
  seen = entries.at(-1).isIntersecting;
  if (!seen) return;
  setTimeout(() => window.mfmPlotly?.(plotly).catch(() => {}));
  if (dirty || (figure && !plot.data)) draw();
}).observe(element);
header();
