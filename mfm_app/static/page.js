// The address bar says what the open tab shows: of each tab the last view, or just its name.
() => {
  const last = {};
  window.mfmVisit = (tab, address) => {
    last[tab] = address ?? last[tab] ?? (location.search.includes(`tab=${tab}`) ? location.search : `?tab=${tab}`);
    try { history.replaceState(history.state, '', last[tab]); } catch { /* in a frame that may not */ }
    const above = location.ancestorOrigins?.[0] ?? (document.referrer && new URL(document.referrer).origin);
    if (above === 'https://huggingface.co') window.parent.postMessage({ queryString: last[tab].slice(1), hash: '' }, above);
  };
}
