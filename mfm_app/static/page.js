// What all tabs share.
() => {
  // Revisions. Every change by hand takes the next number. A question to the server carries the revisions of the
  // fields it depends on, and its answer brings them back: what belongs to a field that was changed since is not
  // taken, so the newest change wins in whatever order messages arrive. An address is older than any hand.
  const revisions = {}, values = {}, clicked = {}, addressRevision = 1;
  let newest = addressRevision;
  const of = field => revisions[field] ?? 0, next = () => ++newest;
  const pending = (id, on) => document.getElementById(id)?.setAttribute('aria-busy', on);
  const unchanged = value => value?.__type__ === 'update' && Object.keys(value).length === 1;      // `gr.skip()`
  const set = (field, value, revision) => {
    values[field] = value;
    revisions[field] = revision;
    window.dispatchEvent(new CustomEvent('mfm-revision', { detail: field }));
  };
  window.mfmRevisions = {
    of, next, set, pending,
    value: (field, first) => field in values ? values[field] : first,      // first: its value when the page opened
    changed(field, value, first) {
      if (value !== this.value(field, first)) set(field, value, next());
      return value;
    },
    // Gradio may tell of a tab when another was opened since; then nothing changes.
    opened(tab, field, value, first, updates) {
      if (clicked[field] !== tab && document.getElementById(tab))
        return [this.value(field, first), ...updates.map(() => undefined)];
      return [this.changed(field, value, first), ...updates];
    },
    ask(fields, ids) {
      ids.forEach(id => pending(id, true));
      return { revision: of(fields[0]), asked: Object.fromEntries(fields.map(field => [field, of(field)])) };
    },
    // A value for each output, undefined where it stays; `outputs`: {id, depends_on, field} of each.
    take({ revision, asked, values: answers }, outputs) {
      const current = fields => fields.every(field => (asked?.[field] ?? revision) === of(field));
      const outdated = outputs.map(({ depends_on, field }, i) => {
        if (!field) return false;
        if (unchanged(answers[i]) || revision < of(field) || (asked && !current(depends_on))) return true;
        set(field, answers[i], revision);
        return false;
      });
      return outputs.map(({ id, depends_on }, i) => {
        if (!current(depends_on)) return undefined;
        pending(id, false);
        return outdated[i] || unchanged(answers[i]) ? undefined : answers[i];
      });
    },
  };

  // A text counts from the key that changed it; Gradio tells of it some frames later.
  document.addEventListener('input', ({ target }) => {
    const id = target.matches('textarea') && target.closest('.block')?.id;
    if (id) window.mfmRevisions.changed(id, target.value);
  }, true);
  // So does a tab from the click that opens it (`set_on_open`); which one is open the page shows some frames later.
  const newestOf = new WeakMap();      // list of tabs -> the one clicked last
  document.addEventListener('click', ({ target }) => {
    const tab = target.closest('[role=tab]'), list = tab?.closest('[role=tablist]');
    if (!list) return;
    const isOpen = tab.getAttribute('aria-selected') === 'true' && (newestOf.get(list) ?? tab) === tab;
    newestOf.set(list, tab);
    const [, field, value] = tab.id.match(/^(.+)-is-(\w+)-\w+-button$/) ?? [];
    if (!field || isOpen) return;
    clicked[field] = tab.id;
    window.mfmRevisions.changed(field, value);
  }, true);

  // How channels are shown, as `show` in an address: DNA,Actin@magenta:0-90, then perhaps ;one:DNA:0-90;viridis.
  const asked = new URLSearchParams(location.search), tabs = ['explore', 'counterfactual', 'screen', 'about'];
  const range = (text = '0-255') => Object.fromEntries(text.split('-').map((v, i) => [['low', 'high'][i], +v]));
  const channel = part => {
    const [, name, colour, levels] = part.match(/^([^:@]+)(?:@([^:@]+))?(?::(\d{1,3}-\d{1,3}))?$/);
    const own = colour && { colour: decodeURIComponent(colour) };
    return [decodeURIComponent(name), { on: true, ...range(levels), ...own }];
  };
  const picture = window.mfmPicture ??= { as: 'composite', one: '', table: 'grey', low: 0, high: 255 };
  try {
    const [composite, how = '', table] = (asked.get('show') ?? '').split(';'), [as, ...rest] = how.split(':');
    if (composite) window.mfmAsked = new Map(composite === '-' ? [] : composite.split(',').map(channel));
    if (as) Object.assign(picture, { as, table: table || 'grey' }, as === 'grid' ? range(rest[0]) : {});
    if (as === 'one') window.mfmAskedOne = { name: picture.one = decodeURIComponent(rest[0]), ...range(rest[1]) };
  } catch { /* the server says what is wrong with it */ }
  window.mfmShow = () => {
    const all = Object.entries(window.mfmChannels ?? {}), { as, one, table } = picture;
    const levels = ({ low, high } = {}) => low > 0 || high < 255 ? `:${low}-${high}` : '';
    const colour = c => c.colour === c.first.colour ? '' : `@${encodeURIComponent(c.colour)}`;
    const said = ([name, c]) => encodeURIComponent(name) + colour(c) + levels(c), on = all.filter(([, c]) => c.on);
    const changed = all.some(([, c]) => c.on !== c.first.on) || on.some(([, c]) => colour(c) + levels(c));
    const how = as === 'one' ? `one:${encodeURIComponent(one)}${levels(window.mfmChannels?.[one])}`
      : as === 'grid' ? `grid${levels(picture)}` : as === 'rxrx1' ? as : '';
    const composite = changed ? on.map(said).join(',') || '-' : '';
    const colours = ['one', 'grid'].includes(as) && table !== 'grey' ? table : '';
    return [composite, how, colours].join(';').replace(/;+$/, '');
  };

  // Where several models are served, an address names the page's; links to the others keep the tab and the theme.
  const model = () => document.querySelector('#models [aria-current]')?.dataset.model;
  const follow = ({ target }) => {
    const link = target.closest?.('#models a'), theme = asked.get('__theme');
    if (!link) return;
    link.href = `?${new URLSearchParams({ model: link.dataset.model, tab: open, ...theme && { __theme: theme } })}`;
  };
  for (const kind of ['pointerdown', 'focusin']) document.addEventListener(kind, follow, true);

  // The address bar shows the open tab: of each tab the last view, or just its name, and how it is displayed.
  let open = window.mfmOpened = tabs.includes(asked.get('tab')) ? asked.get('tab') : 'explore';
  const last = {}, cells = { [open]: Number(asked.get('cell')) || 0 };
  window.mfmReal = () => document.querySelector('#real-cells .on')?.checked;      // beside those of Explore
  window.mfmAddress = (tab, address) => {
    const query = new URLSearchParams(address), treated = query.has('perturbation') || query.has('molecule');
    if (!treated && !model()) return address;
    if (model()) query.set('model', model());
    if (!treated) return `?${query}`;
    const real = tab === 'explore' && window.mfmReal() ? '1' : '';
    const display = { show: window.mfmShow(), cell: cells[tab] ? String(cells[tab]) : '', real };
    for (const [name, value] of Object.entries(display)) { if (value) query.set(name, value); else query.delete(name); }
    return `?${query}`;
  };
  window.mfmVisit = (tab, address) => {
    if (address === undefined) open = tab;
    last[tab] = address ?? last[tab] ?? (location.search.includes(`tab=${tab}`) ? location.search : `?tab=${tab}`);
    if (tab !== open) return;      // what ends in a hidden tab waits until that is opened
    const query = window.mfmAddress(tab, last[tab]);
    try { history.replaceState(history.state, '', query); } catch { /* in a frame that may not */ }
    const above = location.ancestorOrigins?.[0] ?? (document.referrer && new URL(document.referrer).origin);
    const message = { queryString: query.slice(1), hash: '' };
    if (above === 'https://huggingface.co') window.parent.postMessage(message, above);
  };
  window.mfmLook = cell => {      // another cell is large, or the channels are shown otherwise
    if (cell !== undefined) cells[open] = cell;
    if (last[open]) window.mfmVisit(open, last[open]);
  };
  window.addEventListener('mfm-channels', () => window.mfmLook());

  // Plotly is fetched from this server when it is first needed.
  let loaded = null;
  window.mfmPlotly = folder => loaded ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = `${window.gradio_config.root}/gradio_api/file=${folder}/plotly.min.js`;
    script.onload = () => resolve(window.Plotly);
    script.onerror = reject;
    document.head.append(script);
  });

  // A button of a plotly figure that saves it as SVG, with its provenance inside.
  window.mfmSaveButton = (Plotly, filename, provenance) => ({
    name: 'save', title: 'Save as SVG, with its provenance', icon: Plotly.Icons.camera,
    click: async plot => {
      const address = await Plotly.toImage(plot, { format: 'svg' });
      const svg = decodeURIComponent(address.slice(address.indexOf(',') + 1));
      const drawn = new DOMParser().parseFromString(svg, 'image/svg+xml');
      const metadata = drawn.createElementNS('http://www.w3.org/2000/svg', 'metadata');
      metadata.textContent = JSON.stringify(provenance() ?? {});
      drawn.documentElement.prepend(metadata);
      const link = document.createElement('a');
      const file = new Blob([new XMLSerializer().serializeToString(drawn)], { type: 'image/svg+xml' });
      link.href = URL.createObjectURL(file);
      link.download = `${filename}.svg`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    },
  });
}
